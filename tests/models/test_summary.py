"""The layer table equals the study's, character by character."""

from __future__ import annotations

import torch
from torch import nn

from whycam.models import resnet18, summarize

BLOCKS = """\
            Conv2d-1           [-1, 64, 32, 32]           1,728
       BatchNorm2d-2           [-1, 64, 32, 32]             128
"""
TAIL = """\
       BasicBlock-48            [-1, 512, 4, 4]               0
           Linear-49                   [-1, 10]           5,130
================================================================
Total params: 11,173,962
Trainable params: 11,173,962
Non-trainable params: 0
----------------------------------------------------------------
Input size (MB): 0.01
Forward/backward pass size (MB): 11.25
Params size (MB): 42.63
Estimated Total Size (MB): 53.89
----------------------------------------------------------------"""


def test_summary_of_resnet18():
    table = str(summarize(resnet18()))
    head = "\n".join(
        ["-" * 64, "        Layer (type)               Output Shape         Param #", "=" * 64, BLOCKS.rstrip()]
    )
    assert table.startswith(head)
    assert table.endswith(TAIL)
    rows = summarize(resnet18()).rows
    assert len(rows) == 49
    kinds = [row.name.split("-")[0] for row in rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Conv2d": 20,
        "BatchNorm2d": 20,
        "BasicBlock": 8,
        "Linear": 1,
    }
    assert sum(row.parameters for row in rows) == 11_173_962


def test_summarize_does_not_change_the_model():
    model = resnet18().train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    summarize(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_other_models_and_shared_and_frozen_parameters():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared)
    shared.bias.requires_grad_(False)
    summary = summarize(model, (1, 2, 2))
    assert [row.name for row in summary.rows] == ["Flatten-1", "Linear-2", "ReLU-3", "Linear-4"]
    assert (summary.total, summary.trainable) == (20, 16)
    assert "Non-trainable params: 4" in str(summary)
