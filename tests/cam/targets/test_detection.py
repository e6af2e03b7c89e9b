"""`Boxes`: the score equals its definition, and all methods run on detectors of both output forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectors import ListOfDicts, detr, yolos
from model_state import assert_unchanged, snapshot

import whycam
from whycam import Boxes, WhycamError
from whycam.cam import Layout, detections
from whycam.cam.targets.detection import overlap
from whycam.compat.pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget

METHODS = ["gradcam", "hirescam", "layercam", "gradcam++", "eigencam", "ablationcam", "reciprocam", "scorecam",
           "groupcam(groups=3)", "fullgrad", "inputgradient", "shapleycam", "augmented(gradcam)", "noisy(gradcam, n=2)",
           "augmented(ablationcam)", "eigen(scorecam)"]  # fmt: skip


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return ListOfDicts().double().eval(), torch.randn(3, 3, 16, 24, dtype=torch.float64)


def iou(one, other):
    """Intersection over union of two boxes, from their areas."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return width * height / (area - width * height)


def reference(wanted, labels, found, threshold, how):
    """The score of one image; ``found`` is a list of (box, {label: score})."""
    total = 0.0
    for box, label in zip(wanted, labels, strict=True):
        best, value = -1.0, 0.0
        for candidate, scores in found:
            score = max(scores.values()) if label is None else scores.get(label)
            if score is None or iou(box, candidate) <= threshold:
                continue
            if iou(box, candidate) * score > best:
                best = iou(box, candidate) * score
                value = best if how == "product" else iou(box, candidate) + score
        total += value
    return total


def boxes_like(rng, count, size=20.0):
    low = rng.uniform(0, size, (count, 2))
    return np.concatenate([low, low + rng.uniform(1, size, (count, 2))], 1)


@pytest.mark.parametrize("how", ["sum", "product"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_score_equals_its_definition(seed, threshold, how):
    rng = np.random.default_rng(seed)
    wanted, labels = [boxes_like(rng, n) for n in (3, 0, 2)], [[0, 2, None], [], [1, 1]]
    found = [(boxes_like(rng, 40), rng.integers(0, 3, 40), rng.uniform(0.1, 1, 40)) for _ in wanted]
    output = [dict(zip(("boxes", "labels", "scores"), map(torch.from_numpy, entry), strict=True)) for entry in found]
    target = Boxes(wanted, labels, threshold=threshold, how=how)
    expected = [
        reference(box, label, [(b, {int(k): s}) for b, k, s in zip(*entry, strict=True)], threshold, how)
        for box, label, entry in zip(wanted, labels, found, strict=True)
    ]
    np.testing.assert_allclose(target(output).numpy(), expected, rtol=0, atol=1e-12)
    assert expected[1] == 0
    assert max(expected) > 0

    # The same from dense outputs, where every box has a probability of every class.
    logits, corners = rng.normal(size=(3, 40, 4)), np.stack([entry[0] for entry in found]) / 50
    centers = np.concatenate([corners[..., :2] + corners[..., 2:], 2 * (corners[..., 2:] - corners[..., :2])], -1) / 2
    dense = {"logits": torch.from_numpy(logits), "pred_boxes": torch.from_numpy(centers)}
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for kind, likely in {"softmax": softmax[..., :-1], "sigmoid": 1 / (1 + np.exp(-logits))}.items():
        shrunk = [box / 50 for box in wanted]
        target = Boxes(shrunk, labels, threshold=threshold, how=how, probabilities=kind)
        expected = [
            reference(box, label, [(b, dict(enumerate(p))) for b, p in zip(*entry, strict=True)], threshold, how)
            for box, label, *entry in zip(shrunk, labels, corners, likely, strict=True)
        ]
        np.testing.assert_allclose(target(dense).numpy(), expected, rtol=0, atol=1e-12)


def test_overlap_is_intersection_over_union():
    boxes = torch.from_numpy(boxes_like(np.random.default_rng(0), 50))
    expected = [iou(boxes[0].tolist(), other) for other in boxes.tolist()]
    np.testing.assert_allclose(overlap(boxes[0], boxes).numpy(), expected, rtol=0, atol=1e-14)


def test_score_equals_pytorch_grad_cam_if_the_nearest_box_has_the_label(detector):
    model, images = detector
    for entry in model(images):
        wanted, labels = entry["boxes"].detach() + 0.3, entry["labels"]
        nearest = [int(overlap(box, entry["boxes"]).argmax()) for box in wanted]
        assert nearest == list(range(len(wanted)))
        theirs = FasterRCNNBoxScoreTarget(labels.tolist(), wanted)(entry).detach()
        torch.testing.assert_close(Boxes(wanted, labels)([entry]).detach(), theirs, rtol=0, atol=1e-12)
        assert float(theirs) > 1


def test_map_equals_a_plain_backward_pass(detector):
    model, images = detector
    wanted = [entry["boxes"][:2].detach() + 0.5 for entry in model(images)]
    labels = [entry["labels"][:2] for entry in model(images)]
    captured = []
    handle = model.conv.register_forward_hook(
        lambda _m, _i, out: captured.append(out) or out.retain_grad() or out.clone()
    )
    output = model(images)
    handle.remove()
    total = 0
    for entry, boxes, image_labels in zip(output, wanted, labels, strict=True):
        for box, label in zip(boxes, image_labels, strict=True):
            best = int(((overlap(box, entry["boxes"]) * entry["scores"]) * (entry["labels"] == label)).argmax())
            total = total + overlap(box, entry["boxes"])[best] + entry["scores"][best]
    total.backward()
    model.zero_grad()
    a, g = captured[0].detach(), captured[0].grad
    explained = whycam.explain(model, images, "conv", ["hirescam", "gradcam"], Boxes(wanted, labels))
    torch.testing.assert_close(explained.map("hirescam"), (a * g).sum(1), rtol=0, atol=1e-13)
    assert bool((explained.map("gradcam").flatten(1).abs().amax(1) > 0).all())


def test_ablation_cam_of_boxes(detector):
    model, images = detector
    target = Boxes([entry["boxes"][:2].detach() for entry in model(images)])
    explained = whycam.explain(model, images, "conv", "ablationcam(relative='none')", target)
    activations = model.conv(images).detach()
    for image in range(3):
        expected = 0
        for channel in range(6):
            ablated = activations[image : image + 1].clone()
            ablated[:, channel] = 0
            handle = model.conv.register_forward_hook(lambda *_, ablated=ablated: ablated.clone())
            with torch.no_grad():
                score = target.at(torch.tensor([image]))(model(images[image : image + 1]))
            handle.remove()
            expected = expected + (explained.scores["target"][image] - score) * activations[image, channel]
        torch.testing.assert_close(explained.map()[image], expected[0] if expected.ndim == 3 else expected)


@pytest.mark.parametrize("kind", ["list", "detr", "yolos"])
def test_methods_on_detectors(kind, detector):
    torch.manual_seed(0)
    layout = None
    if kind == "list":
        model, images = detector
        layer, grid = "down", (4, 6)
    elif kind == "detr":
        model, images = detr().double().eval(), torch.randn(3, 3, 32, 48, dtype=torch.float64)
        layer, grid = next(name for name, _ in model.named_modules() if name.endswith("stages.1")), (4, 6)
    else:
        model, images = yolos().double().eval(), torch.randn(3, 3, 32, 48, dtype=torch.float64)
        layer, grid = (
            next(name for name, _ in model.named_modules() if name.endswith("layer.1.layernorm_before")),
            (4, 6),
        )
        layout = Layout("tokens", grid, prefix=1)
    before = snapshot(model)
    target = Boxes(confidence=0.1)
    explained = whycam.explain(model, images, layer, METHODS, target, layout=layout)
    assert_unchanged(model, before)
    assert bool((explained.scores["target"] > 0).any())
    for (method, name, _), raw in explained.maps.items():
        assert raw.shape == (3, *(images.shape[2:] if name == "input" else grid))
        assert bool(raw.isfinite().all()), method
    assert bool((explained.map("gradcam", layer) != 0).any())
    # A single image has the same map as in the batch, also for methods that run perturbed images of several images.
    fixed = target.freeze(model(images))
    alone = whycam.explain(model, images[1:2], layer, METHODS, fixed.at(torch.tensor([1])), layout=layout)
    for key, raw in explained.maps.items():
        scale = max(1e-3, float(raw[1].abs().max()))
        torch.testing.assert_close(alone.maps[key][0], raw[1], rtol=0, atol=1e-8 * scale, msg=str(key))


def test_scores_of_a_half_precision_detector_are_float32(detector):
    model, images = detector
    exact = whycam.explain(model, images, "conv", "gradcam", Boxes(confidence=0.1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = whycam.explain(model.float(), images.float(), "conv", ["gradcam", "ablationcam"], Boxes(confidence=0.1))
    assert mixed.scores["target"].dtype == torch.float32
    torch.testing.assert_close(mixed.scores["target"].double(), exact.scores["target"], rtol=0.1, atol=0)
    assert bool(mixed.map("ablationcam").isfinite().all())


def test_augmented_mirrors_the_boxes(detector):
    model, images = detector
    wanted = [entry["boxes"][:2].detach() + 0.5 for entry in model(images)]
    for target, width in [(Boxes(wanted), 24), (Boxes(confidence=0.3), 24)]:
        fixed = target.freeze(model(images))
        actual = whycam.explain(model, images, "conv", "augmented(hirescam)", target).map()
        runs = [whycam.explain(model, factor * images, "conv", "hirescam", fixed).map() for factor in (0.9, 1, 1.1)]
        mirrored = [boxes.clone() for boxes in fixed.boxes]
        for boxes, original in zip(mirrored, fixed.boxes, strict=True):
            boxes[:, 0], boxes[:, 2] = width - original[:, 2], width - original[:, 0]
        other = Boxes(mirrored, fixed.labels)
        for factor in (0.9, 1, 1.1):
            score = other(model(factor * images.flip(-1)))
            if not bool(score.any()):  # the detector with random weights may not find the mirrored boxes
                runs.append(torch.zeros_like(runs[0]))
            else:
                runs.append(whycam.explain(model, factor * images.flip(-1), "conv", "hirescam", other).map().flip(-1))
        torch.testing.assert_close(actual, torch.stack(runs).mean(0), rtol=0, atol=1e-12)
    fractions = Boxes(torch.tensor([0.1, 0.2, 0.4, 0.9]), fractions=True).mirrored(24).boxes
    torch.testing.assert_close(fractions, torch.tensor([0.6, 0.2, 0.9, 0.9]))


def test_equivalent_forms_of_boxes_and_labels(detector):
    model, images = detector
    entries = model(images)
    # Moved by half a pixel: if two boxes coincide, their overlap has no derivative.
    boxes = [entry["boxes"][:2].detach() + 0.5 for entry in entries]
    labels = [entry["labels"][:2].tolist() for entry in entries]
    expected = whycam.explain(model, images, "conv", "hirescam", Boxes(boxes, labels)).map()
    names = ["ant", "bee", "cat", "dog"]
    named = [[names[label] for label in image_labels] for image_labels in labels]
    one_each = [Boxes(box, label) for box, label in zip(boxes, labels, strict=True)]
    several = {"first": Boxes([box[0:1] for box in boxes], [label[:1] for label in labels]),
               "second": Boxes([box[1:2] for box in boxes], [label[1:] for label in labels])}  # fmt: skip
    for target in (
        Boxes(torch.stack(boxes), torch.tensor(labels)),
        Boxes([box.numpy() for box in boxes], labels),
        Boxes([box.tolist() for box in boxes], labels),
        Boxes(boxes, named),
        one_each,
    ):
        actual = whycam.explain(model, images, "conv", ["hirescam", "ablationcam"], target, classes=names)
        torch.testing.assert_close(actual.map("hirescam"), expected, rtol=0, atol=1e-6)
    parts = whycam.explain(model, images, "conv", "hirescam", several)
    torch.testing.assert_close(parts.map(target="first") + parts.map(target="second"), expected, rtol=0, atol=1e-12)
    # One box for all images, and the detector's own boxes of one class.
    single = whycam.explain(model, images[:1], "conv", "hirescam", Boxes(boxes[0][0], labels[0][0])).map()
    torch.testing.assert_close(single, parts.map(target="first")[:1], rtol=0, atol=1e-12)
    detected = Boxes(labels="dog", confidence=0.26).named(names.index).freeze(entries)
    assert {label for image_labels in detected.labels for label in image_labels} == {3}
    assert predicts_no_class(whycam.explain(model, images, "conv", "gradcam", Boxes(boxes, labels)))


def predicts_no_class(explained):
    """A detector that returns no leading tensor predicts no class."""
    assert explained.logits.shape == (3, 0)
    with pytest.raises(WhycamError, match="no class is predicted"):
        _ = explained.predicted
    return "no class predicted" in explained._repr_html_()


def test_bad_boxes_and_outputs_are_refused(detector):
    model, images = detector
    far = Boxes([100.0, 100.0, 101.0, 101.0])
    for target, message in [
        (
            far,
            "reports none of the wanted boxes in any image: of their labels, the largest overlap is 0, the threshold",
        ),
        (Boxes(confidence=0.999), "not sure of any box: the highest score is 0.*; give boxes, or a lower confidence"),
        (Boxes([far.boxes, far.boxes, far.boxes][:1] * 2, [0, 1, 2]), "3 labels are given for 2 boxes"),
        (Boxes([[far.boxes]] * 2), "boxes of 2 images are given for 3 images"),
        (None, r"must return \(B, K\) logits, got"),
        (1, r"must return \(B, K\) logits, got"),
    ]:
        with pytest.raises(WhycamError, match=message):
            whycam.explain(model, images, "conv", "gradcam", target)
    with pytest.raises(WhycamError, match="this model returns a Tensor"):
        whycam.explain(torch.nn.Sequential(model.conv), images, "[0]", "gradcam", Boxes([0, 0, 1, 1]))
    with pytest.raises(WhycamError, match="'softmax' or 'sigmoid', not 'tanh'"):
        detections(model(images), "tanh")
    with pytest.raises(WhycamError, match="by the 'sum' or the 'product'"):
        Boxes(how="mean")
    with pytest.raises(WhycamError, match=r"four numbers; got \(2, 3\)"):
        Boxes([[0, 0, 1], [0, 0, 1]])
    with pytest.raises(WhycamError, match="label 7 does not exist; this detector has 0 to 2"):
        Boxes([0.0, 0, 1, 1], 7)({"logits": torch.zeros(1, 2, 4), "pred_boxes": torch.ones(1, 2, 4)})
    with pytest.raises(WhycamError, match="Finer-CAM compares a class"):
        whycam.explain(model, images, "conv", "finercam", Boxes(confidence=0.1))


def test_values_that_are_no_boxes_are_refused():
    for boxes in ([[1, 2, 3, 4], [5, 6, 7]], [["a", "b", "c", "d"]]):
        with pytest.raises(whycam.WhycamError, match="four numbers"):
            whycam.Boxes(boxes)
    two = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])]
    assert whycam.Boxes(two).boxes is two
