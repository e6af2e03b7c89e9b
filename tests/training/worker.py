"""The program of each process under torchrun: ``worker.py FOLDER [kill RANK STEP | recipe muon]``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from tiny import MUON, RECIPE, run

from whycam.training.loop import Loop


def main() -> None:
    torch.set_num_threads(1)
    folder, *rest = sys.argv[1:]
    recipe = MUON if rest[:1] == ["recipe"] else RECIPE
    kill = rest if rest[:1] == ["kill"] else []
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if kill and first_life and os.environ["RANK"] == kill[1]:
        step = Loop.step

        def dying(self, plan):
            step(self, plan)
            if self.position.epoch == 1 and self.position.step == int(kill[2]):
                os.kill(os.getpid(), signal.SIGKILL)

        Loop.step = dying
    run(Path(folder), recipe=recipe, checkpoint_seconds=0.0)


if __name__ == "__main__":
    main()
