"""A server with small limits and a slow model, so that tests of limits are quick.

python serve_slowly.py LOG, where LOG is a file that gets a line for each explanation that begins and ends.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from serving import serve_live

import whycam
from whycam.app.limits import Limits
from whycam.app.live_explainer import LiveExplainer

LIMITS = Limits(
    file_bytes=2**20, total_bytes=2**21, uploads=12, queue_size=4, upload_seconds=1, work_seconds=20, head_seconds=1,
    grace_seconds=1,
)  # fmt: skip


class Watched(LiveExplainer):
    """Writes a line when an explanation begins and when it ends."""

    log = Path(sys.argv[1])

    def explain(self, content, choice, token):
        self.note("begin")
        answer = super().explain(content, choice, token)
        self.note("end")
        return answer

    def note(self, word):
        with self.log.open("a") as file:
            file.write(f"{word}\n")


model, spec = whycam.load("cifar10-resnet18")
live = Watched(model, spec)
for block in (*model.layer1, *model.layer2, *model.layer3, *model.layer4):
    block.register_forward_pre_hook(lambda *_: time.sleep(0.1))
serve_live(live, LIMITS)
