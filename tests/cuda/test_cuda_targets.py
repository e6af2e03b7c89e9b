"""Targets whose tensors are on the CPU or on the GPU, for a network on the GPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from architectures import segformer
from detectors import ListOfDicts, detr
from map_errors import assert_maps_close, relative_error
from networks import InPlace
from torch import nn

import whycam
from whycam.cam.methods.fullgrad import full_gradients

METHODS = ["gradcam", "shapleycam", "ablationcam", "noisy(gradcam, n=2)", "inputgradient", "groupcam(groups=3)"]
PER_IMAGE = torch.tensor([3, 0, 9, 5])
EMBEDDING = torch.randn(4, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

TARGETS = {
    "predicted": None,
    "one": 3,
    "list": [3, 0, 9, 5],
    "tensor": PER_IMAGE,
    "int32": PER_IMAGE.int(),
    "array": PER_IMAGE.numpy(),
    "names": ["cat", "airplane", "truck", "dog"],
    "class score": whycam.ClassScore(PER_IMAGE),
    "probability": whycam.Probability(PER_IMAGE),
    "log probability": whycam.LogProbability(PER_IMAGE.numpy()),
    "rest": whycam.ReST(PER_IMAGE),
    "margin": whycam.Margin(PER_IMAGE, 2),
    "margin of lists": whycam.Margin([3, 0, 9, 5], [1, 1, 1, 1]),
    "finer": whycam.Finer(PER_IMAGE),
    "finer, given": whycam.Finer(PER_IMAGE, similar=torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])),
    "output": whycam.Output(4),
    "similarity": whycam.Similarity(EMBEDDING[0]),
    "similarity per image": whycam.Similarity(EMBEDDING),
    "similarity of an array": whycam.Similarity(EMBEDDING.numpy()),
    "one each": [3, whycam.Margin(0, 1), None, whycam.Similarity(EMBEDDING[1])],
    "callable": lambda logits: logits.logsumexp(1),
    "whole output": whycam.WholeOutput(lambda logits: logits[:, 2] - logits[:, 1]),
}


@pytest.fixture(scope="module")
def pair(spec, device):
    """(network, images) on the CPU and on the device: float64, small, with CIFAR-10's classes."""
    torch.manual_seed(0)
    network = InPlace()
    network.head = nn.Linear(8, 10)
    network.class_names = list(spec.classes)
    network, images = network.double().eval(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    return (network, images), (copy.deepcopy(network).to(device), images.to(device))


@pytest.mark.parametrize("name", TARGETS)
def test_targets_on_the_cpu(pair, name):
    here, there = (whycam.explain(*case, "conv2", METHODS, TARGETS[name]) for case in pair)
    assert_maps_close(there.maps, here.maps, 1e-8)
    for key, score in here.scores.items():
        assert relative_error(there.scores[key], score) < 1e-10


def test_targets_on_the_gpu_too(pair, device):
    (model, images), _ = pair
    moved = {
        "tensor": PER_IMAGE.to(device),
        "margin": whycam.Margin(PER_IMAGE.to(device), 2),
        "similarity per image": whycam.Similarity(EMBEDDING.to(device)),
        "scalars": list(PER_IMAGE.to(device)),
    }
    network, pixels = pair[1]
    together = whycam.explain(network, pixels, "conv2", ["gradcam", "ablationcam"], moved)
    here = whycam.explain(
        model, images, "conv2", ["gradcam", "ablationcam"],
        {name: TARGETS.get(name, PER_IMAGE) for name in moved},
    )  # fmt: skip
    assert_maps_close(together.maps, here.maps, 1e-8)


def test_several_targets_from_one_pass(pair):
    targets = {"predicted": None, "cat": "cat", "each": PER_IMAGE, "margin": whycam.Margin(3, 5)}
    here, there = (whycam.explain(*case, ["conv", "act2"], METHODS[:3], targets) for case in pair)
    assert_maps_close(there.maps, here.maps, 1e-8)


def test_images_and_network_on_different_devices(there, batch, device):
    if device.type == "cpu":
        pytest.skip("there is one device only")
    with pytest.raises(whycam.WhycamError, match=r"the images are on cpu, the model on cuda:0: move one of them"):
        whycam.explain(there, batch[:1])
    with pytest.raises(whycam.WhycamError, match=r"target class 10 does not exist"):
        whycam.explain(there, batch[:1].to(device), targets=torch.tensor([10]))


def test_segmentation_masks(device):
    torch.manual_seed(0)
    network, images = segformer().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    masks = torch.zeros(2, 16, 16)
    masks[0, :8], masks[1, 8:] = 1, 1
    methods = ["gradcam", "ablationcam", "augmented(gradcam)", "noisy(gradcam, n=2)", "inputgradient"]
    far, pixels = copy.deepcopy(network).to(device), images.to(device)
    for mask in (None, masks, masks[0], masks.bool(), masks.numpy(), masks.to(device)):
        on_cpu = mask.cpu() if isinstance(mask, torch.Tensor) else mask
        here = whycam.explain(network, images, methods=methods, targets=whycam.Segmentation(2, on_cpu))
        there = whycam.explain(far, pixels, methods=methods, targets=whycam.Segmentation(2, mask))
        assert_maps_close(there.maps, here.maps, 1e-8)


BOXES = [[[2.0, 2.0, 10.0, 12.0]], [[8.0, 4.0, 20.0, 14.0], [0.0, 0.0, 9.0, 9.0]], [[1.0, 1.0, 12.0, 12.0]]]


@pytest.mark.parametrize("form", ["lists", "arrays", "tensors", "on the device", "its own"])
def test_boxes(device, form):
    torch.manual_seed(0)
    network, images = ListOfDicts().double().eval(), torch.randn(3, 3, 16, 24, dtype=torch.float64)
    boxes = {
        "lists": BOXES,
        "arrays": [np.array(entry) for entry in BOXES],
        "tensors": [torch.tensor(entry) for entry in BOXES],
        "on the device": [torch.tensor(entry).to(device) for entry in BOXES],
        "its own": None,
    }[form]
    here_boxes = BOXES if boxes is not None else None
    methods = ["gradcam", "ablationcam", "scorecam", "augmented(gradcam)", "noisy(gradcam, n=2)", "inputgradient"]
    options = {"threshold": 0.05} if boxes is not None else {"confidence": 0.25}
    here = whycam.explain(network, images, "act", methods, whycam.Boxes(here_boxes, **options))
    far = copy.deepcopy(network).to(device)
    there = whycam.explain(far, images.to(device), "act", methods, whycam.Boxes(boxes, **options))
    assert_maps_close(there.maps, here.maps, 1e-7)
    one_each = [whycam.Boxes(entry, threshold=0.05) for entry in BOXES]
    here, there = (
        whycam.explain(*case, "act", methods[:2], one_each) for case in ((network, images), (far, images.to(device)))
    )
    assert_maps_close(there.maps, here.maps, 1e-7)


def test_boxes_of_detr(device):
    torch.manual_seed(0)
    network, images = detr().double().eval(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    target = whycam.Boxes(confidence=0.0)
    here = whycam.explain(network, images, methods=["gradcam", "ablationcam"], targets=target)
    there = whycam.explain(
        copy.deepcopy(network).to(device), images.to(device), methods=["gradcam", "ablationcam"], targets=target
    )
    assert_maps_close(there.maps, here.maps, 1e-7)


def test_full_gradients_sum_to_the_score(exact_there, batch, device):
    contributions = full_gradients(exact_there, batch[:2].double().to(device), 3)
    assert relative_error(contributions.total, contributions.scores) < 1e-10
