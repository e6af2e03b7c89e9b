"""Pictures: against OpenCV's documented numbers, not against OpenCV, which need not be installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from whycam import WhycamError
from whycam.compat.pytorch_grad_cam._scaling import resized
from whycam.compat.pytorch_grad_cam.sobel_cam import sobel_cam
from whycam.compat.pytorch_grad_cam.utils import image as module
from whycam.compat.pytorch_grad_cam.utils.reshape_transforms import (
    fasterrcnn_reshape_transform,
    swinT_reshape_transform,
    vit_reshape_transform,
)

DRAW = np.random.default_rng(0)


def test_show_cam_on_image():
    picture = DRAW.random((4, 5, 3), dtype=np.float32)
    mask = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    shown = module.show_cam_on_image(picture, mask, use_rgb=True, image_weight=0.25)
    assert shown.dtype == np.uint8
    assert shown.max() == 255
    # Jet from dark blue to dark red.
    heat = module.show_cam_on_image(np.zeros((1, 3, 3)), np.array([[0, 0.502, 1]]), use_rgb=True, image_weight=0)
    assert heat[0].tolist() == [[0, 0, 128], [130, 255, 126], [128, 0, 0]]
    swapped = module.show_cam_on_image(picture[..., ::-1], mask, use_rgb=False, image_weight=0.25)
    np.testing.assert_array_equal(swapped[..., ::-1], shown)


def test_mistakes_are_named():
    with pytest.raises(WhycamError, match=r"floats on \[0, 1\]; its largest value is 255: divide by 255"):
        module.show_cam_on_image(np.full((2, 2, 3), 255), np.zeros((2, 2)))
    with pytest.raises(WhycamError, match="image_weight lies between 0 and 1, got 2"):
        module.show_cam_on_image(np.zeros((2, 2, 3)), np.zeros((2, 2)), image_weight=2)


def test_other_color_maps_come_from_matplotlib_where_they_are_the_same():
    matplotlib = pytest.importorskip("matplotlib")
    heat = module.show_cam_on_image(np.zeros((1, 1, 3)), np.array([[1.0]]), True, colormap=16, image_weight=0)
    expected = np.float64(matplotlib.colormaps["viridis"](255)[:3])
    np.testing.assert_allclose(heat[0, 0] / 255, expected / expected.max(), atol=1 / 100)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 255), (np.float32, 1), (np.float64, 1)])
def test_preprocess_image(dtype, scale):
    picture = (DRAW.random((4, 5, 3)) * scale).astype(dtype)
    tensor = module.preprocess_image(picture, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    expected = (picture / scale - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(tensor[0].permute(1, 2, 0).numpy(), expected, rtol=0, atol=1e-6)
    assert module.preprocess_image(picture[..., 0], [0.5], [0.5]).shape == (1, 1, 4, 5)


def test_deprocess_image():
    values = DRAW.normal(3, 7, (50, 60))
    picture = module.deprocess_image(values)
    assert picture.dtype == np.uint8
    assert abs(float(picture.mean()) - 127) < 1
    assert abs(float(picture.std()) - 25.5) < 0.5


def test_scale_cam_image():
    maps = DRAW.random((2, 3, 4), dtype=np.float32) * 5 + 2
    scaled = module.scale_cam_image(maps)
    assert scaled.dtype == np.float32
    assert scaled.min() == 0
    assert scaled.max() == pytest.approx(1, abs=1e-6)
    assert module.scale_cam_image(maps, (9, 7)).shape == (2, 7, 9)
    assert module.scale_cam_image(maps[:, None], (9, 7, 5)).shape == (2, 5, 7, 9)
    assert module.scale_accross_batch_and_channels(maps[:, None], (9, 7)).shape == (2, 1, 7, 9)
    assert module.scale_cam_image(np.full((1, 3, 3), 4.0)).max() == 0


@pytest.mark.parametrize("size", [(4, 5, 6), (7, 9, 11), (2, 3, 3), (1, 1, 1)])
def test_volumes_are_resized_by_an_interpolating_cubic_spline(size):
    axes = [np.arange(n, dtype=np.float64) for n in (4, 5, 6)]
    # The spline keeps samples in place, and reproduces a constant.
    volume = DRAW.random((1, 4, 5, 6))
    same = resized(torch.from_numpy(volume), (4, 5, 6)).numpy()
    np.testing.assert_allclose(same, volume, rtol=0, atol=1e-12)
    np.testing.assert_allclose(resized(torch.ones(1, 4, 5, 6), size).numpy(), 1, rtol=0, atol=1e-6)
    corners = resized(torch.from_numpy(volume), size).numpy()
    np.testing.assert_allclose(corners[0, 0, 0, 0], volume[0, 0, 0, 0], rtol=0, atol=1e-12)
    assert len(axes) == 3


def test_factorizations_are_shown_where_they_are_strongest():
    picture = np.full((4, 6, 3), 0.5)
    maps = np.zeros((2, 4, 6), np.float32)
    maps[0, :, :3], maps[1, :, 3:] = 1, 0.5
    before = maps.copy()
    shown = module.show_factorization_on_image(picture, maps, colors=[np.array([1, 0, 0]), np.array([0, 0, 1])])
    np.testing.assert_array_equal(maps, before)
    assert shown[0, 0].tolist() == [191, 63, 63]
    assert shown[0, 5].tolist() == [63, 63, 127]
    pytest.importorskip("matplotlib")
    assert module.show_factorization_on_image(picture, maps, concept_labels=["one", "two"]).shape == (4, 12, 3)
    labels = module.create_labels_legend(np.array([[0.1, 0.7, 0.2]]), {0: "cat", 1: "dog,b,c,d", 2: "owl"}, top_k=2)
    assert labels == ["dog,b,c:0.70\nowl:0.20"]


def test_sobel_of_a_step():
    picture = np.zeros((5, 6, 3), np.uint8)
    picture[:, 3:] = 200
    edges = sobel_cam(picture)
    assert edges.dtype == np.uint8
    assert edges[2].tolist() == [0, 0, 128, 128, 0, 0]


def test_reshape_transforms():
    tokens = torch.arange(2 * 13 * 3.0).reshape(2, 13, 3)
    maps = vit_reshape_transform(tokens, height=3, width=4)
    torch.testing.assert_close(maps[0, :, 1, 2], tokens[0, 1 + 4 + 2])
    assert vit_reshape_transform(tokens[:, :10]).shape == (2, 3, 3, 3)  # not 14×14, but a square
    with pytest.raises(WhycamError, match=r"12 tokens are no 14×14 grid: give height and width"):
        vit_reshape_transform(tokens)
    with pytest.raises(WhycamError, match=r"12 tokens are no 2×5 grid"):
        vit_reshape_transform(tokens, 2, 5)
    assert swinT_reshape_transform(tokens[:, 1:], 3, 4).shape == (2, 3, 3, 4)
    assert swinT_reshape_transform(torch.zeros(2, 4, 5, 3)).shape == (2, 3, 4, 5)
    pyramid = {"0": -torch.ones(2, 3, 8, 8), "pool": torch.ones(2, 3, 2, 2)}
    torch.testing.assert_close(fasterrcnn_reshape_transform(pyramid), torch.ones(2, 6, 2, 2))
