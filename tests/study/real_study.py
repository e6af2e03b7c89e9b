"""The study that the room's tests look at: of real images, small, with scores."""

from __future__ import annotations

import numpy as np

from whycam.study import Config

N = 120
SCORED = 3
CONFIG = Config(methods=("gradcam", "hirescam"), limit=N, baseline=0, score_images=SCORED)


def same_scores(one, other):
    columns = ["id", "layer", "method", "target", "class_index"]
    assert one.scores.select(columns).equals(other.scores.select(columns))
    for name in ("before", "morf", "lerf", "combined"):
        # Maps kept in half precision may round apart where they were computed in other batches, and pixels change rank.
        np.testing.assert_allclose(one.scores[name].to_numpy(), other.scores[name].to_numpy(), atol=0.005)
