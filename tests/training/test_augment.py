"""Batched augmentation against one image at a time in NumPy, and the distribution of its random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import real

from whycam.data import CIFAR10
from whycam.training import RECIPES, Recipe
from whycam.training.augment import AugmentationPlan, crop_and_flip, fill_holes, plan_epoch
from whycam.training.device_dataset import DeviceDataset

ALL = Recipe(
    epochs=2, batch_size=32, crops=((0.0, 20), (0.5, 0)), cutout=7, cutout_probability=0.6, jitter=0.3,
    jitter_probability=0.5, flip="random",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source():
    return real(0, 60)


def reference(image, plan, i, recipe, size):
    """The augmentation of one (3, H, W) uint8 image, in float64."""
    mode = {"mode": "reflect"} if recipe.pad_mode == "reflect" else {"mode": "constant", "constant_values": 0}
    padded = np.pad(image, ((0, 0), (recipe.pad,) * 2, (recipe.pad,) * 2), **mode)
    top, left = int(plan.top[i]), int(plan.left[i])
    x = padded[:, top : top + size, left : left + size].astype(np.float64) / 255
    assert x.shape == (3, size, size)
    if plan.flip[i]:
        x = x[:, :, ::-1].copy()
    for row in range(size):
        for column in range(size):
            in_rows = int(plan.hole_top[i]) <= row < int(plan.hole_top[i]) + recipe.cutout
            in_columns = int(plan.hole_left[i]) <= column < int(plan.hole_left[i]) + recipe.cutout
            if recipe.cutout and in_rows and in_columns:
                x[:, row, column] = CIFAR10.mean
    if recipe.jitter:
        x = np.clip(x * float(plan.gain[i]) + float(plan.offset[i]), 0, 1)
    return (x - np.array(CIFAR10.mean)[:, None, None]) / np.array(CIFAR10.std)[:, None, None]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("recipe", [ALL, ALL.override({"pad_mode": "zero"}), *RECIPES.values()], ids=lambda r: r.name)
def test_augmented_batch_equals_single_images_in_numpy(source, recipe, epoch):
    data = DeviceDataset(source, CIFAR10, CPU, recipe.pad, recipe.pad_mode)
    plan = plan_epoch(recipe, len(source), 32, 5, epoch)
    size = recipe.crop_size(epoch, 32)
    x, labels = data.augmented_batch(plan, recipe, size)
    assert x.shape == (60, 3, size, size)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, torch.from_numpy(source.labels)[plan.index])
    for i, index in enumerate(plan.index.tolist()):
        expected = reference(source.images[index], plan, i, recipe, size)
        np.testing.assert_allclose(x[i].numpy(), expected, atol=3e-6, rtol=0)


def test_batches_do_not_depend_on_their_size(source):
    data = DeviceDataset(source, CIFAR10, CPU, ALL.pad, ALL.pad_mode)
    plan = plan_epoch(ALL, len(source), 32, 0, 0)
    whole, labels = data.augmented_batch(plan, ALL, 20)
    parts = [data.augmented_batch(plan.slice(start, start + 7), ALL, 20) for start in range(0, 60, 7)]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)


def test_plain_batch_equals_preprocess(source):
    data = DeviceDataset(source, CIFAR10, CPU, 4, "reflect")
    x, labels = data.plain_batch(10, 30)
    torch.testing.assert_close(x, CIFAR10(source.read(range(10, 30))), atol=1e-6, rtol=0)
    assert labels.tolist() == source.labels[10:30].tolist()


def test_a_plan_depends_only_on_seed_and_epoch():
    def equal(a: AugmentationPlan, b: AugmentationPlan) -> bool:
        return all(torch.equal(left, right) for left, right in zip(vars(a).values(), vars(b).values(), strict=True))

    torch.manual_seed(1)
    first = plan_epoch(ALL, 100, 32, 3, 1)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert equal(first, plan_epoch(ALL, 100, 32, 3, 1))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())  # nothing was drawn from it
    assert not equal(first, plan_epoch(ALL, 100, 32, 4, 1))
    assert not torch.equal(first.index, plan_epoch(ALL, 100, 32, 3, 0).index)
    assert sorted(first.index.tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("size", "low", "high"), [(40, 0, 0), (37, 0, 3), (32, 0, 8), (28, 2, 10), (24, 4, 12), (16, 4, 20)]
)
def test_crop_positions_are_uniform_and_within_bounds(size, low, high):
    """In pixels of the padded image: a crop of 24 of 32 moves as far inside the image as one of 32 over its edges."""
    plan = plan_epoch(Recipe(crops=((0, size),), pad=4), 20_000, 32, 0, 0)
    for start in (plan.top, plan.left):
        counts = torch.bincount(start, minlength=high + 1)
        assert (int(start.min()), int(start.max())) == (low, high)
        share = 20_000 / (high - low + 1)
        assert (counts[low:] - share).abs().max() < 5 * share**0.5


def test_probabilities_are_those_of_the_recipe():
    plan = plan_epoch(RECIPES["study"], 40_000, 32, 0, 0)
    holed = plan.hole_top >= 0
    assert torch.equal(holed, plan.hole_left >= 0)
    assert abs(float(holed.float().mean()) - 0.5) < 0.013
    assert (int(plan.hole_top.max()), int(plan.hole_left[holed].min())) == (16, 0)
    changed = plan.gain != 1
    assert abs(float(changed.float().mean()) - 0.2) < 0.01
    assert 0.8 <= float(plan.gain.min()) < 0.81 < 1.19 < float(plan.gain.max()) <= 1.2
    assert -0.2 <= float(plan.offset.min()) < -0.19 < 0.19 < float(plan.offset.max()) <= 0.2
    assert not plan.flip.any()


def test_flips():
    def flips(kind: str, epoch: int) -> torch.Tensor:
        plan = plan_epoch(Recipe(flip=kind), 4000, 32, 0, epoch)
        by_image = torch.empty_like(plan.flip)
        by_image[plan.index] = plan.flip
        return by_image

    for kind in ("random", "alternate"):
        assert abs(float(flips(kind, 0).float().mean()) - 0.5) < 0.04
    assert torch.equal(flips("alternate", 0), ~flips("alternate", 1))
    assert torch.equal(flips("alternate", 0), flips("alternate", 2))
    assert abs(float((flips("random", 0) ^ flips("random", 1)).float().mean()) - 0.5) < 0.04


def test_augmentations_without_effect():
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    index, zero = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    no, yes = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    assert torch.equal(crop_and_flip(images, index, zero, zero, 8, no), images)
    assert torch.equal(crop_and_flip(images, index, zero, zero, 8, yes), images.flip(2))
    x = images.float()
    assert torch.equal(fill_holes(x, zero - 3, zero - 3, 3, torch.zeros(3)), x)
    assert not fill_holes(x, zero, zero, 8, torch.zeros(3)).any()
