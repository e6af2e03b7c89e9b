"""ResNets for 32×32 input (He et al., 2015, arXiv:1512.03385, in the CIFAR form with a 3×3 stem and no max-pool).

Parameter names follow the most widely used CIFAR checkpoints: ``conv1, bn1, layer1.0.conv1 … shortcut.0, linear``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A CIFAR ResNet: 3×3 stem, four stages of basic blocks, global average pool, one linear layer.

    Args:
        depths: blocks per stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
        num_classes: K, the number of logits.
    """

    def __init__(self, depths: Sequence[int], num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        in_channels = 64
        for stage, depth in enumerate(depths, start=1):
            channels = 64 * 2 ** (stage - 1)
            strides = [1 if stage == 1 else 2] + [1] * (depth - 1)
            blocks = [
                BasicBlock(in_channels if index == 0 else channels, channels, stride)
                for index, stride in enumerate(strides)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            in_channels = channels
        self.linear = nn.Linear(in_channels, num_classes)
        self.stages = len(depths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalized images → (B, K) logits; any H and W of at least 8 pixels."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        # This mean is global average pooling; unlike the pooling layer it is exact in either memory layout.
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def resnet18(num_classes: int = 10) -> ResNet:
    """ResNet-18 for 32×32 input: 11,173,962 parameters with ten classes."""
    return ResNet((2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 10) -> ResNet:
    """ResNet-34 for 32×32 input: 21,282,122 parameters with ten classes."""
    return ResNet((3, 4, 6, 3), num_classes)


def zero_last_gains(model: nn.Module) -> None:
    """Set the gain of every block's last BatchNorm to zero, in place: the block is then relu(shortcut(x))."""
    for module in model.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and how to recognize it by its tensors.

    Attributes:
        build: K, the number of classes → the network with its initial weights.
        class_tensor: the name of the one-dimensional tensor with one entry per class, usually the last layer's bias.
    """

    build: Callable[[int], nn.Module]
    class_tensor: str

    def __call__(self, num_classes: int) -> nn.Module:
        """The network with its initial weights."""
        return self.build(num_classes)

    def num_classes(self, state: Mapping[str, Tensor]) -> int | None:
        """The number of classes of a state_dict; None where its names are not this architecture's.

        BatchNorm's batch counters may be missing. Only names are compared, so that nothing is built from a state_dict
        of unknown size.
        """
        with torch.device("meta"):
            expected = set(self.build(1).state_dict())
        required = {name for name in expected if not name.endswith("num_batches_tracked")}
        if not required <= set(state) <= expected or state[self.class_tensor].ndim != 1:
            return None
        return len(state[self.class_tensor])


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(resnet18, class_tensor="linear.bias"),
    "resnet34": Architecture(resnet34, class_tensor="linear.bias"),
}
"""The networks that ``load`` recognizes and a recipe can name. A new one needs an entry here and nothing else."""

STUDY_LAYERS = ("layer2[-2]", "layer3[-2]", "layer4[-1]")


def study_layers(model: nn.Module) -> tuple[str, ...] | None:
    """The study's three layers if the network has a ResNet's four stages, else None."""
    children = dict(model.named_children())
    return STUDY_LAYERS if all(layer.partition("[")[0] in children for layer in STUDY_LAYERS) else None
