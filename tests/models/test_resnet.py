"""The networks equal the paper's definition."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from whycam.models import resnet18


def batch_norm(x, norm):
    shape = (1, -1, 1, 1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def test_forward_is_the_textbook_network():
    torch.manual_seed(0)
    model = resnet18().double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = batch_norm(F.conv2d(images, model.conv1.weight, padding=1), model.bn1).relu()
    for stage, stride in [(1, 1), (2, 2), (3, 2), (4, 2)]:
        for index, block in enumerate(getattr(model, f"layer{stage}")):
            s = stride if index == 0 else 1
            y = batch_norm(F.conv2d(x, block.conv1.weight, stride=s, padding=1), block.bn1).relu()
            y = batch_norm(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
            if len(block.shortcut):
                x = batch_norm(F.conv2d(x, block.shortcut[0].weight, stride=s), block.shortcut[1])
            x = (y + x).relu()
    assert x.shape == (2, 512, 4, 4)
    expected = F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), model.linear.weight, model.linear.bias)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


def test_any_size_of_at_least_eight_pixels():
    model = resnet18(3).eval()
    for size in [(8, 8), (24, 24), (33, 47)]:
        assert model(torch.randn(1, 3, *size)).shape == (1, 3)
