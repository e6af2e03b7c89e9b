"""The metrics against small direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compat_networks import images, small

from whycam.compat import pytorch_grad_cam as compat
from whycam.compat.pytorch_grad_cam.metrics import arcc, cam_mult_image, perturbation_confidence as perturbation, road
from whycam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, SoftmaxOutputTarget

TARGETS = [ClassifierOutputSoftmaxTarget(index) for index in (0, 3, 1)]
MAPS = np.random.default_rng(0).random((3, 12, 16), dtype=np.float32)


def scores(model, batch):
    model.eval()
    with torch.no_grad():
        return np.array([float(target(row)) for target, row in zip(TARGETS, model(batch), strict=True)])


def dense(image, missing):
    """The fill-in as the paper states it: each missing pixel is the weighted mean of the neighbours it has."""
    height, width = missing.shape
    places = {place: row for row, place in enumerate(zip(*np.nonzero(missing), strict=True))}
    system, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(image)))
    for (y, x), row in places.items():
        for (down, across), weight in road.neighbors_weights:
            other = (y + down, x + across)
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            system[row, row] += weight
            if other in places:
                system[row, places[other]] -= weight
            else:
                right[row] += weight * image[:, other[0], other[1]]
    filled = image.copy()
    filled[:, missing] = np.linalg.solve(system, right).T
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_pixels_are_filled_in_from_their_surroundings(share):
    batch = images().double()
    missing = torch.from_numpy(np.random.default_rng(1).random((3, 12, 16)) < share)
    filled = road.NoisyLinearImputer(noise=0)(batch, (~missing).float())
    for index in range(3):
        expected = dense(batch[index].numpy(), missing[index].numpy())
        np.testing.assert_allclose(filled[index].numpy(), expected, rtol=0, atol=1e-6)
        alone = road.NoisyLinearImputer(noise=0)(batch[index], (~missing[index]).float())
        np.testing.assert_allclose(alone.numpy(), expected, rtol=0, atol=1e-6)


def test_the_noise_is_seeded_and_only_where_something_was_missing():
    image, mask = images()[0], torch.ones(12, 16)
    mask[3:8, 4:9] = 0
    plain = road.NoisyLinearImputer(noise=0)(image, mask)
    first, again = (road.NoisyLinearImputer(noise=0.1)(image, mask) for _ in range(2))
    torch.testing.assert_close(first, again)
    assert not torch.equal(first, road.NoisyLinearImputer(noise=0.1, seed=1)(image, mask))
    assert torch.equal(first[:, mask == 1], image[:, mask == 1])
    assert 0.05 < float((first - plain)[:, mask == 0].std()) < 0.2
    assert torch.equal(road.NoisyLinearImputer()(image, torch.ones(12, 16)), image)


def test_road(monkeypatch):
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0.0, road.neighbors_weights, 0))
    model, found = small().train(), {}
    for sign, metric in ((1, road.ROADMostRelevantFirst), (-1, road.ROADLeastRelevantFirst)):
        for percentile in (20, 70):
            order = MAPS if sign == 1 else 1 - MAPS
            missing = [values >= np.percentile(values, percentile) for values in order]
            filled = np.stack([dense(x, m) for x, m in zip(images().double().numpy(), missing, strict=True)])
            expected = scores(model.eval(), torch.from_numpy(filled).float()) - scores(model, images())
            model.train()
            actual = metric(percentile)(images(), MAPS, TARGETS, model)
            assert model.training
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
            found[sign, percentile] = actual
    combined = road.ROADCombined(percentiles=[20, 70])(images(), MAPS, TARGETS, model)
    expected = (found[-1, 20] + found[-1, 70] - found[1, 20] - found[1, 70]) / 4
    np.testing.assert_allclose(combined, expected, rtol=0, atol=1e-6)


def test_averages_run_the_unchanged_image_once():
    model, calls = small().eval(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    road.ROADMostRelevantFirstAverage([10, 50, 90])(images(), MAPS, TARGETS, model)
    assert len(calls) == 4


def test_image_times_map():
    model = small()
    change = scores(model, images() * torch.from_numpy(MAPS)[:, None]) - scores(model, images())
    for metric, expected in [
        (cam_mult_image.CamMultImageConfidenceChange, change),
        (cam_mult_image.DropInConfidence, np.maximum(-change, 0)),
        (cam_mult_image.IncreaseInConfidence, change > 0),
    ]:
        np.testing.assert_allclose(metric()(images(), MAPS, TARGETS, model), expected, rtol=0, atol=1e-6)
    result, shown = cam_mult_image.CamMultImageConfidenceChange()(
        images(), MAPS, TARGETS, model, return_visualization=True, return_diff=False
    )
    np.testing.assert_allclose(result, scores(model, shown), rtol=0, atol=1e-6)
    several = cam_mult_image.CamMultImageConfidenceChange()(images(), MAPS, [SoftmaxOutputTarget()] * 3, model)
    assert several.shape == (3, 5)


def test_otsu_separates_two_clusters():
    levels = np.concatenate([np.full(50, 40), np.full(30, 45), np.full(60, 200)]).astype(np.uint8)
    assert 45 <= perturbation.otsu(levels) < 200
    hidden = perturbation.RemoveMostRelevantFirst("auto", lambda _image, mask: mask)
    mask = hidden(torch.zeros(1, 1, 140), torch.from_numpy(levels / np.float32(255))[None])
    assert (mask.numpy()[0] > 0).tolist() == (levels > 100).tolist()


def test_a_users_own_perturbation_and_imputer():
    model = small()
    dark = perturbation.PerturbationConfidenceMetric(lambda image, cam: image * (cam < 0.5))
    expected = scores(model, images() * torch.from_numpy(MAPS < 0.5)[:, None]) - scores(model, images())
    np.testing.assert_allclose(dark(images(), MAPS, TARGETS, model), expected, rtol=0, atol=1e-6)
    shapes = []

    def imputer(image, mask):
        shapes.append((tuple(image.shape), tuple(mask.shape)))
        return image * mask

    perturbation.PerturbationConfidenceMetric(perturbation.RemoveMostRelevantFirst(50, imputer))(
        images(), MAPS, TARGETS, model
    )
    assert shapes == [((3, 12, 16), (12, 16))] * 3


def test_arcc():
    model = small().eval()
    cam = compat.GradCAM(model, [model.conv2])
    maps = cam(images(), TARGETS)
    again = cam(images() * torch.from_numpy(maps)[:, None], TARGETS)
    coherency = [(np.corrcoef(a.ravel(), b.ravel())[0, 1] + 1) / 2 for a, b in zip(maps, again, strict=True)]
    simple = 1 - maps.mean((1, 2))
    quality = (road.ROADCombined([20, 40, 60, 80])(images(), maps, TARGETS, model) * 2).clip(0, 1)
    expected = 3 / (1 / (np.array(coherency) + 1e-8) + 1 / (simple + 1e-8) + 1 / (quality + 1e-8))
    np.testing.assert_allclose(arcc.ARCC(cam)(images(), maps, TARGETS, model), expected, rtol=1e-4, atol=1e-7)
