"""Baselines of hidden pixels: against sums over all pixels, and the limits they must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from whycam.errors import WhycamError
from whycam.metrics.faithfulness.baselines import background


def random_images(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def blurred(channel):
    """(H, W) → each pixel the mean of all pixels, weighted by a Gaussian of the distance."""
    height, width = channel.shape
    sigma = min(height, width) / 16
    out = np.empty_like(channel)
    rows, columns = np.mgrid[:height, :width]
    for y in range(height):
        for x in range(width):
            weights = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
            out[y, x] = (weights * channel).sum() / weights.sum()
    return out


@pytest.mark.parametrize("size", [(20, 33), (40, 17), (3, 3), (1, 9)])
def test_blur_equals_a_gaussian_weighted_mean_of_all_pixels(size):
    images = random_images(2, 3, *size)
    found = background(images, "blur")
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(found[b, c].numpy(), blurred(images[b, c].numpy()), atol=1e-12)


def test_black_and_mean_by_hand():
    images = random_images(3, 2, 5, 7)
    assert torch.equal(background(images, "black"), torch.zeros_like(images))
    mean = background(images, "mean")
    for b in range(3):
        for c in range(2):
            expected = sum(float(value) for value in images[b, c].flatten()) / 35
            np.testing.assert_allclose(mean[b, c].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("fill", ["mean", "blur"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_constant_images_stay_constant_and_values_stay_within_0_1(fill, dtype):
    for value in (0.0, 0.3, 1.0):
        flat = torch.full((2, 3, 49, 37), value, dtype=dtype)
        found = background(flat, fill)
        assert found.dtype == dtype
        assert 0 <= found.min() <= found.max() <= 1
        # Each value is two sums of about twenty relevant weights.
        torch.testing.assert_close(found, flat, atol=10 * torch.finfo(dtype).eps, rtol=0)
    extremes = random_images(4, 3, 31, 49).round().to(dtype)
    found = background(extremes, fill)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_baselines_do_not_depend_on_the_batch_or_the_orientation(fill):
    images = random_images(4, 3, 12, 15)
    whole = background(images, fill)
    assert whole.shape == images.shape
    for b in range(4):
        torch.testing.assert_close(background(images[b : b + 1], fill)[0], whole[b], atol=1e-14, rtol=0)
    torch.testing.assert_close(background(images.mT, fill).mT, whole, atol=1e-14, rtol=0)
    torch.testing.assert_close(background(images.flip(3), fill).flip(3), whole, atol=1e-14, rtol=0)
    assert background(images[:0], fill).shape == (0, 3, 12, 15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_only_at_the_end(dtype):
    images = random_images(2, 3, 24, 700).to(dtype)
    for fill in ("mean", "blur"):
        assert torch.equal(background(images, fill), background(images.float(), fill).to(dtype))


def test_a_tensor_of_pixels_as_fill():
    images = random_images(4, 3, 6, 5, dtype=torch.float32)
    color = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None, None]
    found = background(images, color)
    assert found.dtype == images.dtype
    assert torch.equal(found, color.float().expand(4, 3, 6, 5))
    assert torch.equal(background(images, images.flip(0)), images.flip(0))
    assert torch.equal(background(images, torch.tensor(0.25)), torch.full_like(images, 0.25))


def test_wrong_fills_are_refused():
    images = random_images(2, 3, 6, 5)
    cases = [
        (images, "noise", r"^fill is 'black', 'mean', 'blur' or a tensor of pixels, not 'noise'$"),
        (images, 0.5, "or a tensor of pixels, not 0.5"),
        (
            images,
            torch.zeros(3),
            r"fill is \(3,\) and does not broadcast to images of \(2, 3, 6, 5\): give \(C, 1, 1\)",
        ),
        (images, torch.zeros(2, 2, 3, 6, 5), "does not broadcast"),
        (images, torch.tensor(-0.1), r"fill holds values from -0.1 to -0.1: pixels must lie in \[0, 1\]"),
        (images, torch.tensor(255), "fill holds values from 255 to 255"),
        (images, torch.tensor(torch.nan), "fill holds values from nan to nan"),
        (images, torch.tensor(torch.inf), "fill holds values from inf to inf"),
        (images * 255, "mean", r"images must be floats in \[0, 1\]"),
        (images[0], "mean", r"images must be \(B, C, H, W\)"),
    ]
    for pixels, fill, message in cases:
        with pytest.raises(WhycamError, match=message):
            background(pixels, fill)
