"""The capture of `explain`: results do not depend on batching or fusing, and the model is not changed."""

from __future__ import annotations

import copy
import gc
import itertools
import resource
from pathlib import Path

import pytest
import torch
from model_state import assert_unchanged, snapshot
from networks import InPlace, Raises, Reused, TupleOutput, UnusedLayer
from torch import nn

import whycam
from whycam import WhycamError
from whycam.cam import Explainer, capture, resolve_layers
from whycam.cam.targets.resolve import resolve_targets

STUDY_LAYERS = ["layer2[-2]", "layer3[-2]", "layer4[-1]"]
METHODS = ["gradcam", "hirescam"]


def assert_same_maps(one, other, *, rtol=1e-4, atol=1e-5):
    assert one.maps.keys() == other.maps.keys()
    for key in one.maps:
        torch.testing.assert_close(one.maps[key], other.maps[key], rtol=rtol, atol=atol)


@pytest.fixture
def used_model(loaded, batch):
    """A copy of the model with mixed modes, frozen parts and gradients of a user."""
    model = copy.deepcopy(loaded[0])
    model.train()
    model.layer1.eval()
    model.layer3[1].bn2.eval()
    for parameter in model.layer2.parameters():
        parameter.requires_grad_(False)
    for parameter in model.linear.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_batch_equals_single_images(model, batch):
    together = whycam.explain(model, batch, STUDY_LAYERS, METHODS)
    for index in range(len(batch)):
        alone = whycam.explain(model, batch[index : index + 1], STUDY_LAYERS, METHODS)
        for key, raw in together.maps.items():
            torch.testing.assert_close(alone.maps[key][0], raw[index], rtol=1e-4, atol=1e-5)


def test_batch_order_does_not_matter(model, batch):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    straight = whycam.explain(model, batch, STUDY_LAYERS, METHODS)
    mixed = whycam.explain(model, batch[order], STUDY_LAYERS, METHODS)
    for key in straight.maps:
        torch.testing.assert_close(mixed.maps[key], straight.maps[key][order], rtol=1e-4, atol=1e-5)


def test_several_layers_equal_separate_layers(model, batch):
    fused = whycam.explain(model, batch, STUDY_LAYERS, METHODS)
    for layer in STUDY_LAYERS:
        alone = whycam.explain(model, batch, layer, METHODS)
        for key, raw in alone.maps.items():
            torch.testing.assert_close(fused.maps[key], raw, rtol=1e-5, atol=1e-6)


def test_several_targets_equal_separate_targets(model, batch):
    named = {"predicted": None, "cat": 3, "each": torch.arange(8)}
    fused = whycam.explain(model, batch, STUDY_LAYERS, METHODS, named)
    assert fused.targets == ("predicted", "cat", "each")
    for name, target in named.items():
        alone = whycam.explain(model, batch, STUDY_LAYERS, METHODS, target)
        for method, layer in itertools.product(METHODS, STUDY_LAYERS):
            torch.testing.assert_close(fused.map(method, layer, name), alone.map(method, layer), rtol=1e-5, atol=1e-6)


def test_three_ways_to_name_a_layer(model, batch):
    explained = whycam.explain(model, batch, ["layer3[-2]", "layer3.0", model.layer3[0]][:2])
    by_module = whycam.explain(model, batch, model.layer3[0])
    torch.testing.assert_close(explained.map(layer="layer3[-2]"), explained.map(layer="layer3.0"))
    torch.testing.assert_close(by_module.map(), explained.map(layer="layer3.0"))


@pytest.mark.parametrize("targets", [None, 3, {"a": None, "b": torch.arange(8)}])
def test_explain_leaves_the_model_unchanged(used_model, batch, targets):
    before = snapshot(used_model)
    explained = whycam.explain(used_model, batch, STUDY_LAYERS, METHODS, targets)
    assert_unchanged(used_model, before)
    # The copy with mixed modes gives the same maps as the network in eval mode.
    assert_same_maps(explained, whycam.explain(copy.deepcopy(used_model).eval(), batch, STUDY_LAYERS, METHODS, targets))
    assert not any(raw.requires_grad for raw in explained.maps.values())
    assert not batch.requires_grad


def failing_target(_logits):
    raise ZeroDivisionError("inside the target")


def test_exception_in_the_forward_pass_leaves_the_model_unchanged():
    model = Raises().train()
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError, match="inside the forward pass"):
        whycam.explain(model, torch.randn(2, 3, 8, 8), "conv")
    assert_unchanged(model, before)


def test_exception_in_the_target_leaves_the_model_unchanged(used_model, batch):
    before = snapshot(used_model)
    with pytest.raises(ZeroDivisionError, match="inside the target"):
        whycam.explain(used_model, batch, STUDY_LAYERS, METHODS, failing_target)
    assert_unchanged(used_model, before)


def test_exception_in_the_default_layer_search_leaves_the_model_unchanged():
    model = Raises().train()
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        whycam.explain(model, torch.randn(2, 3, 8, 8))
    assert_unchanged(model, before)


@pytest.mark.parametrize("layer", ["conv", "norm", "act", "conv2"])
def test_in_place_operations_behind_the_layer(layer):
    torch.manual_seed(0)
    model = InPlace().eval()
    images = torch.randn(4, 3, 9, 9)
    captured = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: captured.update(out=out.clone()))
    model(images)
    handle.remove()
    trace = capture(model, images, resolve_layers(model, [layer]), resolve_targets(2))
    torch.testing.assert_close(trace.activations[layer], captured["out"])
    out_of_place = copy.deepcopy(model)
    out_of_place.act.inplace = out_of_place.act2.inplace = False
    expected = capture(out_of_place, images, resolve_layers(out_of_place, [layer]), resolve_targets(2))
    torch.testing.assert_close(trace.gradients[layer, "target"], expected.gradients[layer, "target"])


def test_reused_module_is_explained_at_its_last_run():
    torch.manual_seed(0)
    model = Reused().eval()
    images = torch.randn(4, 3, 9, 9)
    explained = whycam.explain(model, images, "shared", "hirescam", 1)
    # After its last run only ReLU, mean and linear layer follow, so the gradient is known in closed form.
    features = model.shared(model.shared(model.stem(images).relu()).relu())
    weights = model.head.weight[1] / features[0, 0].numel()
    expected = (features.relu() * weights[None, :, None, None]).sum(1).detach()
    torch.testing.assert_close(explained.map(), expected)


def test_model_that_returns_a_dict():
    model = TupleOutput().eval()
    images = torch.randn(2, 3, 8, 8)
    explained = whycam.explain(model, images, "conv")
    torch.testing.assert_close(explained.logits, model(images)["logits"].detach())


def test_caller_in_inference_mode(model, batch):
    expected = whycam.explain(model, batch, STUDY_LAYERS, METHODS)
    with torch.inference_mode():
        images = batch * 1.0
        explained = whycam.explain(model, images, STUDY_LAYERS, METHODS)
    assert images.is_inference()
    assert_same_maps(explained, expected)


def test_caller_without_gradients(model, batch):
    with torch.no_grad():
        explained = whycam.explain(model, batch, STUDY_LAYERS, METHODS)
    assert_same_maps(explained, whycam.explain(model, batch, STUDY_LAYERS, METHODS))


def test_frozen_model(loaded, batch):
    frozen = copy.deepcopy(loaded[0]).requires_grad_(False)
    assert_same_maps(
        whycam.explain(frozen, batch, STUDY_LAYERS, METHODS), whycam.explain(loaded[0], batch, STUDY_LAYERS, METHODS)
    )


def test_memory_layouts_agree(loaded, batch):
    plain = copy.deepcopy(loaded[0]).to(memory_format=torch.contiguous_format)
    expected = whycam.explain(loaded[0], batch, STUDY_LAYERS, METHODS)
    assert_same_maps(whycam.explain(plain, batch, STUDY_LAYERS, METHODS), expected)
    channels_last = batch.contiguous(memory_format=torch.channels_last)
    assert_same_maps(whycam.explain(plain, channels_last, STUDY_LAYERS, METHODS), expected)


def test_autocast_is_respected_and_maps_are_float32(model, batch):
    expected = whycam.explain(model, batch, "layer4[-1]")
    with torch.autocast("cpu", torch.bfloat16):
        explained = whycam.explain(model, batch, "layer4[-1]")
    raw, exact = explained.map(), expected.map()
    assert raw.dtype == torch.float32
    difference = float((raw - exact).abs().max() / exact.abs().max())
    assert 1e-4 < difference < 0.1  # bfloat16 was really used, and the map is still the map


def test_half_precision_model(loaded, batch):
    half = copy.deepcopy(loaded[0]).bfloat16()
    explained = whycam.explain(half, batch.bfloat16(), "layer4[-1]")
    assert explained.map().dtype == torch.float32
    exact = whycam.explain(loaded[0], batch, "layer4[-1]").map()
    assert float((explained.map() - exact).abs().max() / exact.abs().max()) < 0.15


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports what torch itself deprecates
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_unwrapped(loaded, batch, wrap):
    explained = whycam.explain(wrap(loaded[0]), batch, STUDY_LAYERS, METHODS)
    assert_same_maps(explained, whycam.explain(loaded[0], batch, STUDY_LAYERS, METHODS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_and_exported_programs_are_refused(batch):
    torch.manual_seed(0)
    model = InPlace().eval()
    images = torch.randn(2, 3, 9, 9)
    with pytest.raises(WhycamError, match=r"TorchScript module cannot be inspected: pass the nn.Module"):
        whycam.explain(torch.jit.trace(model, images), images, "conv")
    exported = torch.export.export(model, (images,)).module()
    with pytest.raises(WhycamError, match=r"cannot be inspected|did not run"):
        whycam.explain(exported, images, "conv")


def test_layers_without_a_map_are_refused(model, batch):
    with pytest.raises(WhycamError, match=r"layer 'linear' returns a \(8, 10\) tensor; a map needs"):
        whycam.explain(model, batch, "linear")
    with pytest.raises(WhycamError, match=r"a single position, so there is no map; choose an earlier layer"):
        whycam.explain(model, batch[..., :8, :8], "layer4[-1]")


def test_layers_that_do_not_run_or_do_not_matter_are_refused():
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(WhycamError, match="layer 'idle' did not run"):
        whycam.explain(UnusedLayer(), images, "idle")
    with pytest.raises(WhycamError, match="does not depend on layer 'dead_end'"):
        whycam.explain(UnusedLayer(), images, ["conv", "dead_end"])


def test_default_layer_is_the_last_spatial_one(model, batch):
    assert whycam.explain(model, batch).layers == ("layer4.1",)
    # At 8×8 pixels the last stage is 1×1, so the stage before it is the last one with a map.
    assert whycam.explain(model, batch[..., :8, :8]).layers == ("layer3.1",)
    with pytest.raises(WhycamError, match="has no layer with a spatial map"):
        whycam.explain(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), torch.randn(2, 3, 8, 8))


def test_2000_calls_leave_nothing_behind():
    """No tensor, no hook and no memory is left, neither in Python nor for the operating system."""
    torch.manual_seed(0)
    model = InPlace().eval()
    images = torch.randn(2, 3, 9, 9)
    explainer = Explainer(model, ["conv", "conv2"], ["gradcam", "hirescam", "gradcam++", "eigencam", "inputgradient"])

    def tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    for _ in range(200):
        explainer(images, {"a": None, "b": 1})
    before, state, size = tensors(), snapshot(model), resident()
    for _ in range(1800):
        explainer(images, {"a": None, "b": 1})
    assert tensors() - before <= len(state["values"])  # the snapshot itself
    assert_unchanged(model, state)
    # If every call kept one activation of 2·6·9·9 floats, that would be 7 MB.
    assert resident() - size < 3 * 2**20


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"shape \(B, C, H, W\), got \(3, 32, 32\); one image needs a batch axis"),
        (torch.zeros(0, 3, 32, 32), "the batch of images is empty"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "must be normalized floats, got torch.uint8"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), r"images are torch.float64, the model torch.float32"),
        (torch.full((2, 3, 32, 32), torch.nan), "2 of 2 images hold NaN"),
        (torch.zeros(2, 1, 32, 32), r"images have 1 channel\(s\), the model's first convolution takes 3"),
        ([1, 2], "must be a torch tensor"),
    ],
)
def test_bad_images_are_named(model, images, message):
    with pytest.raises(WhycamError, match=message):
        whycam.explain(model, images, "layer4[-1]")
