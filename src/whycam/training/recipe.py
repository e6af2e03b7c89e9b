"""A training recipe: everything that decides how a network is trained, as one typed, serializable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from whycam._lazy import renamed_attribute
from whycam.errors import WhycamError
from whycam.options import Example, Range, Share, converted

_Rate = Annotated[float, Range(0, 1e3)]
_Epochs = Annotated[int, Range(1, 100_000)]
_Steps = Annotated[int, Range(1, 1_000_000)]
_Crops = Annotated[tuple[tuple[float, int], ...], Example("[[0, 24], [0.7, 32]]")]
_LowHigh = Annotated[tuple[float, float], Example("[0.85, 0.95]")]


@dataclass(frozen=True)
class Recipe:
    """How to train: the network, its optimization, its augmentation and its averaging.

    Values may be text or JSON, as on a command line; they are converted to the fields' types.

    Attributes:
        name: the recipe's name in reports; overriding a field keeps the name.
        architecture: a name in ``whycam.models.ARCHITECTURES``.
        epochs: passes over the training set.
        batch_size: images per optimizer step, over all processes together.
        drop_last: leave out an epoch's incomplete last batch. The order changes every epoch, so every image is used.
        optimizer: "sgd" (with Nesterov momentum), "adam", or "muon": orthogonal steps for convolution filters, SGD for
            all other parameters (Jordan et al., 2024). Muon keeps the norm of the filters constant, so it suits
            convolutions that are followed by a normalization layer.
        lr: peak learning rate. Muon's is the fraction of a filter's weights that a step changes.
        other_rate: with muon, the learning rate of everything but convolution filters, as a multiple of ``lr``.
        bias_rate: a factor on the learning rate of biases and normalization shifts.
        momentum: SGD's momentum, Adam's β₁; below 1.
        momentum_range: (low, high) of a momentum that falls while the learning rate rises, as in one-cycle training;
            None keeps ``momentum`` throughout.
        warmup: fraction of all steps over which the learning rate rises linearly.
        lr_start: first learning rate as a fraction of the peak.
        lr_end: last learning rate as a fraction of the peak; the fall from the peak is linear.
        weight_decay: in the usual units of the optimizer (5e-4 for SGD, 1e-4 for Adam); Muon's filters have none.
        decoupled: shrink the weights directly: by lr · weight_decay / (1 − momentum) per step for SGD (the effect of
            L2 once momentum has built up) and by lr · weight_decay for Adam. False adds L2 to the gradient, which muon
            does not support.
        zero_gain: start the last normalization of each block of whycam's ResNets with a gain of 0, so that the block
            begins as its shortcut (Goyal et al., 2017, arXiv:1706.02677).
        decay_all: decay biases and BatchNorm's parameters too, not only convolution and linear weights.
        label_smoothing: share of the target that is spread evenly over all classes.
        crops: pairs (from, size): from this fraction of the epochs on, train on square crops of this many pixels; 0
            means the size of the whole image.
        pad: pixels by which the image is extended on each side, so that a crop may reach over its edge. Smaller crops
            use less of it, since they already move inside the image.
        pad_mode: "reflect" or "zero" (black).
        flip: mirror horizontally: "none", "random", or "alternate" (each image every second epoch; Jordan, 2024,
            arXiv:2404.00498).
        cutout: side of the square hole in pixels; 0 for none (DeVries & Taylor, 2017, arXiv:1708.04552). It lies
            inside the image and is filled with the data set's mean.
        cutout_probability: share of images with a hole.
        jitter: brightness and contrast change by up to this much: pixel · (1 ± jitter) ± jitter, clipped to [0, 1].
        jitter_probability: share of images whose brightness and contrast change.
        sam_radius: use the gradient at the point within this distance where the loss is highest (to first order), for
            flatter minima (sharpness-aware minimization; Foret et al., 2021, arXiv:2010.01412). Each weight tensor's
            distance is measured relative to its own norm; the total is the root of the sum of their squares (Kwon et
            al., 2021, arXiv:2102.11600). 0 turns this off; it costs a second forward and backward pass.
        sam_from: fraction of the epochs after which the steps are sharpness-aware; below 1.
        averaging: "none", "ema" (an exponential moving average beside the weights), or "lookahead" (the weights
            return to the average; Zhang et al., 2019, arXiv:1907.08610). Both include BatchNorm's statistics.
        averaging_every: steps between updates of the average.
        averaging_decay: share of the old average that an update keeps. An EMA ramps up to it; lookahead grows to it
            with the cube of the progress.
        precision: "fp32", "bf16" (autocast; weights stay fp32) or "auto": bf16 if the hardware supports it natively.
        channels_last: memory layout of images and weights.
        compile: pass the network to ``torch.compile``.
        graph: on a GPU, capture a step once as a CUDA graph and replay it, which saves hundreds of kernel launches.
            Not used with several processes, adam or a cycled momentum. Set it to False for a network that decides
            something new in Python in every forward pass, such as which layers to drop: a replay repeats the decisions
            of the capture.
        sync_batchnorm: with several processes, compute BatchNorm's statistics over the whole batch.
        evaluate_every: epochs between evaluations on the test set; the last epoch is always evaluated.

    Raises:
        WhycamError: a value has the wrong type or is out of range, or two values contradict each other.
    """

    name: str = "custom"
    architecture: str = "resnet18"
    epochs: _Epochs = 20
    batch_size: _Steps = 256
    drop_last: bool = True
    optimizer: Literal["sgd", "adam", "muon"] = "sgd"
    lr: _Rate = 0.4
    other_rate: _Rate = 1.0
    bias_rate: _Rate = 1.0
    momentum: Share = 0.9
    momentum_range: _LowHigh | None = None
    warmup: Share = 0.2
    lr_start: Share = 0.05
    lr_end: Share = 0.0
    weight_decay: Share = 5e-4
    decoupled: bool = True
    zero_gain: bool = False
    decay_all: bool = False
    label_smoothing: Share = 0.1
    crops: _Crops = ((0.0, 0),)
    pad: Annotated[int, Range(0, 1_000)] = 4
    pad_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternate"] = "alternate"
    cutout: Annotated[int, Range(0, 10_000)] = 0
    cutout_probability: Share = 1.0
    jitter: Share = 0.0
    jitter_probability: Share = 0.0
    sam_radius: Annotated[float, Range(0, 10)] = 0.0
    sam_from: Share = 0.0
    averaging: Literal["none", "ema", "lookahead"] = "ema"
    averaging_every: _Steps = 5
    averaging_decay: Share = 0.95
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    graph: bool = True
    sync_batchnorm: bool = True
    evaluate_every: _Epochs = 1

    def __post_init__(self) -> None:
        for name, value in converted("recipe", Recipe, vars(self)).items():
            object.__setattr__(self, name, value)
        if self.momentum >= 1:
            raise WhycamError(f"recipe: momentum is {self.momentum}; it must be below 1")
        if self.sam_from >= 1:
            raise WhycamError(f"recipe: sam_from is {self.sam_from}; it must be below 1, or sam_radius 0 for never")
        if self.optimizer == "muon" and not self.decoupled:
            raise WhycamError("recipe: decoupled is false, but muon shrinks weights directly; set decoupled=true")
        if self.momentum_range and not 0 <= self.momentum_range[0] <= self.momentum_range[1] < 1:
            raise WhycamError(f"recipe: momentum_range is {self.momentum_range}; it must be (low, high) within [0, 1)")
        self._check_crops()

    def _check_crops(self) -> None:
        starts = [start for start, _ in self.crops]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= 1:
            raise WhycamError(
                f"recipe: crops is {self.crops}; it must be pairs (from, size) whose first starts at 0 and whose "
                "starts rise and stay below 1, for example ((0, 24), (0.7, 32))"
            )
        if any(size < 0 for _, size in self.crops):
            raise WhycamError(f"recipe: crops is {self.crops}; a size is at least 1 pixel, or 0 for the whole image")

    def crop_size(self, epoch: int, side: int) -> int:
        """The crop's side in pixels in ``epoch`` (from 0) for images of ``side`` pixels."""
        size = [size for start, size in self.crops if start <= epoch / self.epochs][-1]
        return size or side

    def sharpness_aware(self, epoch: int) -> bool:
        """Whether the steps of ``epoch`` (from 0) are sharpness-aware."""
        return self.sam_radius > 0 and self.sam_from <= epoch / self.epochs

    pixels = renamed_attribute("pixels", "pixels_per_image")

    def pixels_per_image(self, epoch: int, side: int) -> int:
        """Pixels per image that pass through the network in ``epoch`` (from 0): a crop, twice if sharpness-aware."""
        return self.crop_size(epoch, side) ** 2 * (2 if self.sharpness_aware(epoch) else 1)

    def steps_per_epoch(self, images: int) -> int:
        """Optimizer steps in one epoch over ``images`` images; at least one."""
        whole, rest = divmod(images, self.batch_size)
        return max(1, whole if self.drop_last or not rest else whole + 1)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: _as_lists(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read the JSON form.

        Raises:
            WhycamError: there is no such field, or a value does not fit.
        """
        return cls().override(values)

    def override(self, values: Mapping[str, Any]) -> Recipe:
        """This recipe with some fields changed; values may be typed, or text as on a command line.

        Raises:
            WhycamError: there is no such field, or a value does not fit.
        """
        return dataclasses.replace(self, **converted("recipe", Recipe, values))


def _as_lists(value: Any) -> Any:
    return [_as_lists(entry) for entry in value] if isinstance(value, tuple) else value
