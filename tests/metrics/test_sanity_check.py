"""The parameter randomization test: which maps change with the network, and which stay the same."""

from __future__ import annotations

import copy

import pytest
import torch
from small_network import PARTS, changed, random_images, state_of, trained
from torch import nn

import whycam
from whycam.cam import METHODS, Method
from whycam.cam.maps import heatmaps
from whycam.errors import WhycamError
from whycam.metrics.map_similarity import spearman, ssim
from whycam.metrics.randomization.reinitialize import reinitialized_by_part
from whycam.metrics.randomization.sanity_check import sanity_check

METHOD_NAMES = ["gradcam", "layercam", "random", "refinecam", "inputgradient", "sobel", "center"]


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_scores_equal_a_plain_loop(order):
    model, images = trained(), random_images(5, 6)
    layers = ["blocks[0]", "stem"]
    found = sanity_check(model, images, layers, METHOD_NAMES, order=order, seed=2)
    modules = [model.blocks[0], model.stem]  # as modules, which are named by their paths, as in the copies
    original = whycam.explain(model, images, modules, METHOD_NAMES, seed=2)
    assert found.parts == tuple(PARTS)
    assert found.order == order
    names = {"blocks.0": "blocks[0]", "blocks.0+stem": "blocks[0]+stem"}
    expected = []
    for part, copied in reinitialized_by_part(model, order=order, seed=2):
        assert order == "independent" or not torch.equal(copied(images).argmax(1), original.predicted)
        modules = [copied.blocks[0], copied.stem]
        after = whycam.explain(copied, images, modules, METHOD_NAMES, original.predicted, seed=2)
        for method, layer, _ in original.maps:
            one, other = original.map(method, layer), after.map(method, layer)
            key = part, method, names.get(layer, layer)
            expected.append(key)
            torch.testing.assert_close(found.rank[key], spearman(one, other), rtol=0, atol=1e-12, equal_nan=True)
            torch.testing.assert_close(
                found.rank_absolute[key], spearman(one.abs(), other.abs()), rtol=0, atol=1e-12, equal_nan=True
            )
            expected_ssim = ssim(heatmaps(one, (6, 6)), heatmaps(other, (6, 6)), window=6, span=1)
            torch.testing.assert_close(found.similarity[key], expected_ssim, rtol=0, atol=1e-12)
    assert list(found.rank) == list(found.rank_absolute) == list(found.similarity) == expected


def test_methods_that_ignore_the_network_score_exactly_1():
    blind = Method("blind", "Blind", "", "", lambda trace: trace.activations.square().mean(dim=1), needs=frozenset(),
                   scope="input")  # fmt: skip
    found = sanity_check(trained(), random_images(8), methods=["sobel", "center", blind], order="independent")
    for scores in (found.rank, found.rank_absolute, found.similarity):
        assert len(scores) == 3 * len(PARTS)
        for values in scores.values():
            assert values.dtype == torch.float64
            assert values.tolist() == [1.0] * 8
    rows = found.rows()
    assert [(row["part"], row["method"], row["layer"]) for row in rows] == list(found.rank)
    assert all(row["rank"] == row["similarity"] == 1.0 and row["rank_absolute_n"] == 8 for row in rows)
    # Random channel weights are the same for all copies, and a part after the layer does not change its activations.
    head = sanity_check(trained(), random_images(), "blocks[-1]", ["random", "eigencam"], parts="head")
    assert all(values.tolist() == [1.0] * 3 for values in head.rank.values())


def test_all_copies_are_explained_for_the_classes_of_the_original():
    model, images = trained(), random_images(4)
    predicted = model(images).argmax(dim=1)
    free = sanity_check(model, images, "stem")
    for given in (predicted, predicted.tolist(), predicted.numpy(), whycam.ClassScore(predicted), whycam.Predicted()):
        fixed = sanity_check(model, images, "stem", targets=given)
        assert all(torch.equal(fixed.rank[key], values) for key, values in free.rank.items())
    other = (int(predicted[0]) + 1) % 4
    one = sanity_check(model, images, "stem", targets=other)
    assert not torch.equal(one.rank["head", "gradcam", "stem"], free.rank["head", "gradcam", "stem"])
    model.class_names = ("a", "b", "c", "d")
    named = sanity_check(model, images, "stem", targets="abcd"[other])
    assert all(torch.equal(named.rank[key], values) for key, values in one.rank.items())


def test_layers_of_wrapped_networks_and_default_layers():
    model, images = trained(), random_images()
    plain = sanity_check(model, images, "blocks[-1]", ["gradcam", "random"])
    wrapped = sanity_check(nn.DataParallel(model), images, ["module.blocks[-1]"], ["gradcam", "random"])
    given = sanity_check(model, images, model.blocks[-1], ["gradcam", "random"])
    found = sanity_check(model, images, None, ["gradcam", "random"])
    model.cam_layers = ["blocks[-1]"]
    own = sanity_check(model, images, None, ["gradcam", "random"])
    names = ["module.blocks[-1]", "blocks.1", "blocks.1", "blocks[-1]"]
    for other, name in zip((wrapped, given, found, own), names, strict=True):
        for (part, method, _), values in plain.similarity.items():
            assert torch.equal(other.similarity[part, method, name], values)


class ZeroAfterReset(nn.Linear):
    """Its reset sets all parameters to 0."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def test_undefined_scores_are_left_out_of_the_means():
    model = trained()
    model.head = ZeroAfterReset(6, 4)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0])[:, None].expand(4, 6))
    # The evidence for class 0 is all positive, for class 1 all negative, and for class 2 zero.
    found = sanity_check(model, random_images(3), "blocks[-1]", ["gradcam"], [0, 1, 2], parts="head")
    ((key, rank),) = found.rank.items()
    assert rank.isnan().all()
    similarity = found.similarity[key]
    assert -1 <= float(similarity[0]) < 0.9
    assert similarity[1:].isnan().all()
    (row,) = found.rows()
    assert row == {"part": "head", "method": "gradcam", "layer": "blocks[-1]", "rank": None, "rank_n": 0,
                   "rank_absolute": None, "rank_absolute_n": 0, "similarity": float(similarity[0]),
                   "similarity_n": 1}  # fmt: skip
    broken = Method("broken", "Broken", "", "", lambda trace: 1 / (METHODS["center"](trace) > 0.5).float(),
                    needs=frozenset(), scope="input")  # fmt: skip
    found = sanity_check(trained(), random_images(2), methods=[broken], parts="head")
    assert found.rank["head", "broken", "input"].isnan().all()
    assert found.similarity["head", "broken", "input"].isnan().all()


def test_wrong_arguments_are_refused():
    model, images = trained(), random_images()
    for targets in (lambda logits: logits[:, 0], whycam.Margin(0, 1), [0, whycam.Predicted(), 1]):
        with pytest.raises(WhycamError, match="all copies are explained for the same class: targets must be None"):
            sanity_check(model, images, targets=targets)
    with pytest.raises(WhycamError, match="got dict"):
        sanity_check(model, images, targets={"a": 0})
    with pytest.raises(WhycamError, match="target class 4 does not exist"):
        sanity_check(model, images, targets=4)
    with pytest.raises(WhycamError, match=r"unknown layer 'blocks\.2'"):
        sanity_check(model, images, "blocks.2")
    line = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(WhycamError, match=r"maps of images, \(B, C, H, W\), got \(2, 1, 9\)"):
        sanity_check(line, torch.rand(2, 1, 9), "1")


def test_grad_cam_of_the_real_network_follows_it_and_class_blind_maps_do_not(model, batch):
    before = copy.deepcopy(model.state_dict())
    found = sanity_check(model, batch, "layer4[-1]", ["gradcam", "eigencam", "sobel"], parts=["linear", "layer4"])
    assert not changed(before, model.state_dict())
    rows = {(row["part"], row["method"]): row for row in found.rows()}
    for part in ("linear", "layer4"):
        assert abs(rows[part, "gradcam"]["rank"]) < 0.5
        assert rows[part, "gradcam"]["similarity"] < 0.5
        assert rows[part, "sobel"]["rank"] == 1
    assert rows["linear", "eigencam"]["rank"] == 1  # it uses only activations
    assert rows["layer4", "eigencam"]["rank"] < 0.8


def test_a_vision_transformer(generator):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
                                    image_size=64, patch_size=8, num_labels=5)  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        network.vit.embeddings.cls_token.zero_()
    before = state_of(network)
    found = sanity_check(network, torch.randn(2, 3, 64, 64, generator=generator), methods=["gradcam", "sobel"])
    assert found.parts[:2] == ("classifier", "vit.layernorm")
    assert {"vit.layers.2", "vit.layers.0", "vit.embeddings"} <= set(found.parts)
    assert found.parts[-1] == "vit.embeddings"
    *_, (_, copied) = reinitialized_by_part(network)
    # LayerNorms as untrained as these are reset to what they were.
    same = set(before) - changed(before, copied.state_dict())
    assert same
    assert all("norm" in name for name in same)
    assert not copied.vit.embeddings.cls_token.equal(network.vit.embeddings.cls_token)
    rows = found.rows()
    assert all(row["rank"] < 0.9 for row in rows if row["method"] == "gradcam" and row["part"] == "vit.embeddings")
    assert all(row["rank"] == 1 for row in rows if row["method"] == "sobel")
