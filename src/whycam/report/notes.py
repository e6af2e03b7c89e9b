"""The report's sentences on how to read a map."""

from __future__ import annotations

READING = (
    "A map says where the network's own activations, weighted by its own gradients, point. It does not say that those "
    "pixels caused the prediction; only changing them and looking again can show that.",
    "Deep layers are coarse. The native grid is what was computed; anything smoother is interpolation and labeled so.",
    "Colors are comparable only on the same scale. Each picture here states its scale in words, and raw ranges stand "
    "beside every map.",
    "The usual picture cuts negative evidence off. The negative share is stated, and the signed view shows it.",
    "Maps of wrong predictions often look convincing. Compare the predicted class with the true one before believing "
    "either.",
)
