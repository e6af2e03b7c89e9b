"""A training recipe: everything that decides how a network is trained, as one typed, serializable value."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from whycam.errors import WhycamError, near_misses
from whycam.training.validation import coerce

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("epochs", 1, 100_000),
    ("batch_size", 1, 1_000_000),
    ("lr", 0, 1e3),
    ("other_rate", 0, 1e3),
    ("bias_rate", 0, 1e3),
    ("momentum", 0, 1),
    ("warmup", 0, 1),
    ("lr_start", 0, 1),
    ("lr_end", 0, 1),
    ("weight_decay", 0, 1),
    ("label_smoothing", 0, 1),
    ("pad", 0, 1_000),
    ("cutout", 0, 10_000),
    ("cutout_probability", 0, 1),
    ("jitter", 0, 1),
    ("jitter_probability", 0, 1),
    ("sam_radius", 0, 10),
    ("sam_from", 0, 1),
    ("averaging_every", 1, 1_000_000),
    ("averaging_decay", 0, 1),
    ("evaluate_every", 1, 100_000),
)


@dataclass(frozen=True)
class Recipe:
    """How to train: the network, its optimization, its augmentation and its averaging.

    Attributes:
        name: what the recipe is called in reports; overriding a field keeps the name.
        architecture: a name in ``whycam.models.resnet.ARCHITECTURES``.
        epochs: passes over the training set.
        batch_size: images per optimizer step, over all processes together.
        drop_last: leave out an epoch's incomplete last batch (another order each epoch, so no image is lost for good).
        optimizer: "sgd" (Nesterov), "adam", or "muon" (convolution filters by orthogonal steps, all else by sgd;
            Jordan et al., 2024). Muon keeps the filters at a constant norm, for convolutions that a normalization
            follows.
        lr: peak learning rate. Muon's is the share of a filter's weights that a step changes.
        other_rate: with muon, the rate of everything but convolution filters, as a multiple of ``lr``.
        bias_rate: the rate of biases and normalization shifts, as a multiple of what it would be otherwise (with muon
            other_rate · lr, else lr).
        momentum: SGD's momentum, Adam's β₁.
        momentum_range: (low, high) of a momentum that mirrors the learning rate, as one-cycle training has it;
            None keeps ``momentum`` throughout.
        warmup: fraction of all steps over which the learning rate rises linearly.
        lr_start: first learning rate as a fraction of the peak.
        lr_end: last learning rate as a fraction of the peak; the fall from the peak is linear.
        weight_decay: in the usual units of the optimizer (5e-4 for SGD, 1e-4 for Adam); Muon's filters have none.
        decoupled: shrink the weights directly, by lr · weight_decay / (1 − momentum) a step for SGD (what L2 amounts
            to once momentum has built up) and by lr · weight_decay for Adam; False adds L2 to the gradient, which
            muon does not do.
        zero_gain: start the last normalization of each block of whycam's ResNets with a gain of 0, so that the block
            begins as its shortcut (Goyal et al., 2017, arXiv:1706.02677).
        decay_all: decay biases and BatchNorm's parameters too, not convolution and linear weights alone.
        label_smoothing: share of the target spread evenly over all classes.
        crops: (from, size) pairs: from that fraction of the epochs on, square crops of that many pixels (0: the
            whole image's size).
        pad: pixels by which an image is extended so that a crop may reach over its edge; smaller crops use less of
            it, since they move inside the image already.
        pad_mode: "reflect" or "zero" (black).
        flip: mirror horizontally: "none", "random", or "alternate" (each image every second epoch; Jordan, 2024,
            arXiv:2404.00498).
        cutout: side of the square hole in pixels; 0 for none (DeVries & Taylor, 2017, arXiv:1708.04552). It lies
            inside the image and is filled with the data set's mean.
        cutout_probability: share of images with a hole.
        jitter: brightness and contrast change by up to this much: pixel · (1 ± jitter) ± jitter, clipped to [0, 1].
        jitter_probability: share of images whose brightness and contrast change.
        sam_radius: step against the gradient of where the loss rises the steepest within this distance, for flatter
            minima (sharpness-aware minimization; Foret et al., 2021, arXiv:2010.01412). The distance is the root of
            the sum of squares, over all weight tensors, of how far each goes in parts of its own norm (Kwon et al.,
            2021, arXiv:2102.11600). 0 for none; it costs a second forward and backward pass.
        sam_from: fraction of the epochs from which on it is done; below 1.
        averaging: "none", "ema" (an exponential moving average beside the weights), or "lookahead" (the weights
            return to the average; Zhang et al., 2019, arXiv:1907.08610). Both include BatchNorm's statistics.
        averaging_every: steps between updates of the average.
        averaging_decay: share of the old average that an update keeps. An EMA ramps up to it; lookahead grows to it
            with the cube of the progress.
        precision: "fp32", "bf16" (autocast; weights stay fp32) or "auto": bf16 where the hardware multiplies it.
        channels_last: memory layout of images and weights.
        compile: hand the network to ``torch.compile``.
        graph: on a GPU, record a step once and replay it as a CUDA graph, which spares its hundreds of launches; not
            with several processes, adam or a cycled momentum. False for a network of one's own that decides something
            anew in every forward pass in Python, such as which layers to drop: it would do what was recorded.
        sync_batchnorm: with several processes, BatchNorm's statistics are those of the whole batch.
        evaluate_every: epochs between evaluations on the test set; the last epoch is always evaluated.
    """

    name: str = "custom"
    architecture: str = "resnet18"
    epochs: int = 20
    batch_size: int = 256
    drop_last: bool = True
    optimizer: Literal["sgd", "adam", "muon"] = "sgd"
    lr: float = 0.4
    other_rate: float = 1.0
    bias_rate: float = 1.0
    momentum: float = 0.9
    momentum_range: tuple[float, float] | None = None
    warmup: float = 0.2
    lr_start: float = 0.05
    lr_end: float = 0.0
    weight_decay: float = 5e-4
    decoupled: bool = True
    zero_gain: bool = False
    decay_all: bool = False
    label_smoothing: float = 0.1
    crops: tuple[tuple[float, int], ...] = ((0.0, 0),)
    pad: int = 4
    pad_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternate"] = "alternate"
    cutout: int = 0
    cutout_probability: float = 1.0
    jitter: float = 0.0
    jitter_probability: float = 0.0
    sam_radius: float = 0.0
    sam_from: float = 0.0
    averaging: Literal["none", "ema", "lookahead"] = "ema"
    averaging_every: int = 5
    averaging_decay: float = 0.95
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    graph: bool = True
    sync_batchnorm: bool = True
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = coerce(getattr(self, field.name), _types()[field.name], f"recipe: {field.name}")
            object.__setattr__(self, field.name, value)
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise WhycamError(f"recipe: {name} is {getattr(self, name)}; it must lie from {low:g} to {high:g}")
        if self.momentum >= 1:
            raise WhycamError(f"recipe: momentum is {self.momentum}; it must be below 1")
        if self.sam_from >= 1:
            raise WhycamError(f"recipe: sam_from is {self.sam_from}; it must be below 1, or sam_radius 0 for never")
        if self.optimizer == "muon" and not self.decoupled:
            raise WhycamError("recipe: decoupled is false, but muon shrinks weights directly; set decoupled=true")
        starts = [start for start, _ in self.crops]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise WhycamError(
                f"recipe: crops is {self.crops}; it must be pairs (from, size) whose first starts at 0 and whose "
                "starts rise and stay below 1, for example ((0, 24), (0.7, 32))"
            )
        if any(size < 0 for _, size in self.crops):
            raise WhycamError(f"recipe: crops is {self.crops}; a size is at least 1 pixel, or 0 for the whole image")
        if self.momentum_range and not 0 <= self.momentum_range[0] <= self.momentum_range[1] < 1:
            raise WhycamError(f"recipe: momentum_range is {self.momentum_range}; it must be (low, high) within [0, 1)")

    def crop_size(self, epoch: int, side: int) -> int:
        """The crop's side in pixels in ``epoch`` (from 0) for images of ``side`` pixels."""
        size = [size for start, size in self.crops if start <= epoch / self.epochs][-1]
        return size or side

    def sharpness_aware(self, epoch: int) -> bool:
        """Whether the steps of ``epoch`` (from 0) are sharpness-aware."""
        return self.sam_radius > 0 and self.sam_from <= epoch / self.epochs

    def pixels(self, epoch: int, side: int) -> int:
        """Pixels that go through the network for each image in ``epoch`` (from 0): a crop's, or twice as many."""
        return self.crop_size(epoch, side) ** 2 * (2 if self.sharpness_aware(epoch) else 1)

    def steps_per_epoch(self, images: int) -> int:
        """Optimizer steps in one epoch over ``images`` images; at least one."""
        whole, rest = divmod(images, self.batch_size)
        return max(1, whole if self.drop_last or not rest else whole + 1)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read the JSON form back; an unknown field or a value of the wrong type is a ``WhycamError``."""
        return cls().override(values)

    def override(self, values: Mapping[str, Any]) -> Recipe:
        """This recipe with some fields changed; values may be typed or text as on a command line."""
        for name in values:
            if name not in _types():
                raise WhycamError(f"recipe: there is no field {name!r}{near_misses(name, _types())}")
        return dataclasses.replace(self, **values)


@cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(Recipe)


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
