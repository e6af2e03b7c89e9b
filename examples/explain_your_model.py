"""Explain any PyTorch image classifier. The example is a small network with random weights, on bundled images.

python examples/explain_your_model.py
"""

from __future__ import annotations

import torch
from torch import nn

import whycam

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1),
    nn.ReLU(inplace=True),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(inplace=True),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)
source = whycam.open_source("bundled")
preprocess = whycam.Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=(32, 32))
images = preprocess(source.read(range(4)))

# One forward pass and one backward pass per target serve all layers and methods.
explanation = whycam.explain(
    model,
    images,
    layers=["[0]", "[3]"],
    methods=["gradcam", "hirescam"],
    targets={"predicted": None, "cat rather than dog": whycam.Margin(3, 5)},
)
for key, flags in explanation.flags.items():
    raw = explanation.maps[key]
    print(*key, f"range {raw.min():.3g} to {raw.max():.3g}", flags[0])
explanation.plot(0).savefig("explanation.png")
print("explanation.png")
