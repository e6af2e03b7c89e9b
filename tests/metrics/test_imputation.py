"""Imputation: against a dense solution of the paper's equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imputation_reference import solved
from square_net import SIDE
from torch import nn

from whycam.errors import WhycamError
from whycam.metrics import noisy_linear_imputation


def random_images(count, side=SIDE, channels=3, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def removed_patches(count, side, share, seed=1):
    """Removed pixels in patches, as a coarse map removes them; ``share`` of all pixels."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, (side, side), mode="bilinear")[:, 0]
    return fine <= fine.flatten(1).quantile(share, dim=1)[:, None, None]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_imputed_pixels_solve_the_equations_of_the_paper(share):
    images = torch.rand(4, 2, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    removed = torch.rand(4, 9, 13, generator=torch.Generator().manual_seed(3)) < share
    removed[:, 0, 0] = removed[1, -1] = removed[2, :, -1] = True  # corners and entire edges
    removed[:, 4, 6] = False
    filled = noisy_linear_imputation(images.masked_fill(removed[:, None], torch.nan), removed)
    for b in range(4):
        for c in range(2):
            expected = solved(images[b, c].numpy(), removed[b].numpy())
            np.testing.assert_allclose(filled[b, c].numpy(), expected, atol=1e-7)
    assert torch.equal(filled[~removed[:, None].expand_as(filled)], images[~removed[:, None].expand_as(images)])


def test_an_image_of_224_pixels_converges():
    images, removed = random_images(2, 224, 1), torch.cat([removed_patches(1, 224, 0.9), torch.rand(1, 224, 224) < 0.9])
    filled = noisy_linear_imputation(images.double(), removed)
    kernel = filled.new_tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]).div(12)[None, None]
    weights = nn.functional.conv2d(torch.ones_like(filled), kernel, padding=1)
    around = nn.functional.conv2d(filled, kernel, padding=1) / weights
    assert (filled - around)[removed[:, None]].abs().max() < 1e-6
    known = images[~removed[:, None]]
    # Imputed pixels are weighted means of known pixels, so they lie within the known range.
    assert known.min() - 1e-6 <= filled.min() <= filled.max() <= known.max() + 1e-6


def test_linear_images_are_restored():
    """A ramp inside the image, where pixels have all neighbors; a constant image at the borders too."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = (0.1 + 0.02 * y - 0.01 * x).double()[None, None]
    inside = torch.zeros(1, 20, 30, dtype=torch.bool)
    inside[:, 3:-2, 1:-6] = True
    torch.testing.assert_close(noisy_linear_imputation(ramp, inside), ramp, atol=1e-7, rtol=0)
    removed = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0)) < 0.9
    flat = torch.full_like(ramp, 0.3)
    torch.testing.assert_close(noisy_linear_imputation(flat, removed), flat, atol=1e-7, rtol=0)


def test_imputation_does_not_depend_on_the_batch_or_the_orientation():
    images, removed = random_images(5).double(), removed_patches(5, SIDE, 0.6)
    removed[4] = False  # one image has no removed pixel
    whole = noisy_linear_imputation(images, removed)
    for b in range(5):
        torch.testing.assert_close(
            whole[b : b + 1], noisy_linear_imputation(images[b : b + 1], removed[b : b + 1]), atol=1e-7, rtol=0
        )
    turned = noisy_linear_imputation(images.rot90(1, (2, 3)), removed.rot90(1, (1, 2))).rot90(-1, (2, 3))
    torch.testing.assert_close(whole, turned, atol=1e-7, rtol=0)
    assert noisy_linear_imputation(images.float(), removed).dtype == torch.float32


def test_images_that_cannot_be_imputed_are_refused():
    images, removed = random_images(3), torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    removed[2] = True
    with pytest.raises(WhycamError, match="image 2 has no pixel left from which to impute the others: remove fewer"):
        noisy_linear_imputation(images, removed)
    with pytest.raises(WhycamError, match=r"\(B, H, W\) bool, got \(3, 3, 12, 12\) and \(2, 12, 12\) bool"):
        noisy_linear_imputation(images, removed[:2])
    with pytest.raises(WhycamError, match="NaN or infinity"):
        noisy_linear_imputation(images / 0, removed_patches(3, SIDE, 0.5))
    with pytest.raises(WhycamError, match=r"did not converge in \d+ iterations .*give a larger tolerance"):
        noisy_linear_imputation(random_images(1, 64), removed_patches(1, 64, 0.9), tolerance=0)
