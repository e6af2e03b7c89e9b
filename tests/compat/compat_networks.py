"""A small network that is hard for explanation tools, and the state of a model that must not change."""

from __future__ import annotations

import torch
from torch import nn

from whycam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

ALL = [
    "AblationCAM", "EigenCAM", "EigenGradCAM", "FEM", "FinerCAM", "FullGrad", "GradCAM", "GradCAMElementWise",
    "GradCAMPlusPlus", "HiResCAM", "KPCA_CAM", "LayerCAM", "RandomCAM", "RefineCAM", "SESS", "ScoreCAM", "SegEigenCAM",
    "ShapleyCAM", "XGradCAM",
]  # fmt: skip


class Small(nn.Module):
    """Batch normalization, an in-place ReLU behind the layer that is looked at, mean pool and one linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.act2 = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.act2(self.conv2(x))
        return self.head(self.drop(x.mean((2, 3))))


def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small()
        nn.init.normal_(network.norm.running_mean, std=0.3)
        nn.init.normal_(network.norm.bias, std=0.3)
    return network


def images(count=3, size=(12, 16)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def everything(model):
    """What may not change: modules, modes, hooks, parameters, gradients, buffers."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [
            (name, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for name, module in model.named_modules()
        ],
        "parameters": [
            (name, id(p), p.requires_grad, None if p.grad is None else p.grad.tolist(), p.tolist())
            for name, p in model.named_parameters()
        ],
        "buffers": [(name, id(b), b.tolist()) for name, b in model.named_buffers()],
    }


def classes(*indices):
    return [ClassifierOutputTarget(index) for index in indices]
