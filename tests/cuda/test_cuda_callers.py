"""Ways to call whycam with a network on a GPU (modes, streams, wrappers), and the memory that is left afterwards."""

from __future__ import annotations

import copy
import gc
import pickle
from contextlib import nullcontext

import pytest
import torch
from map_errors import assert_maps_close, relative_error
from networks import Checkpointed, InPlace
from torch import nn

import whycam
from whycam.cam import METHODS as REGISTERED
from whycam.cam.inspect import inspect_layers
from whycam.errors import HardwareError, within_hardware

METHODS = ["gradcam", "hirescam", "shapleycam", "eigencam", "fullgrad", "inputgradient", "guidedbackprop",
           "ablationcam", "reciprocam", "noisy(gradcam, n=2)", "random"]  # fmt: skip
FEW = {"sscam": "sscam(n=2)", "iscam": "iscam(n=2)", "smoothgrad": "smoothgrad(n=2)",
       "integratedgradients": "integratedgradients(steps=2)"}  # fmt: skip
EVERY = [FEW.get(name, name) for name in REGISTERED] + ["augmented(gradcam)", "noisy(fullgrad, n=2)", "eigen(scorecam)"]


def small(device, size=12):
    torch.manual_seed(0)
    return InPlace().double().eval().to(device), torch.randn(4, 3, size, size, dtype=torch.float64).to(device)


def state_of(model):
    """The state that a call must not change: modes, hooks, gradients, and the memory of parameters and buffers."""
    return [
        (
            path, module.training, *(len(getattr(module, name)) for name in
            ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")),
            [(name, id(p), p.data_ptr(), p.requires_grad, p.grad is None, p.device) for name, p in
             module.named_parameters(recurse=False)],
            [(name, id(b), b.data_ptr(), b.device) for name, b in module.named_buffers(recurse=False)],
        )
        for path, module in model.named_modules()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    """Maps of the small network on the CPU, by layer."""
    model, images = small("cpu")
    return {layer: whycam.explain(model, images, layer, METHODS, [0, 1, 2, 3]).maps for layer in ("act2", "conv")}


def check(model, images, expected, layer="act2", bound=1e-9):
    before = state_of(model)
    explained = whycam.explain(model, images, layer, METHODS, [0, 1, 2, 3])
    assert state_of(model) == before
    assert_maps_close(explained.maps, expected[layer], bound)
    return explained


def test_maps_by_layer_and_the_model_is_unchanged(device, expected):
    model, images = small(device)
    for layer in ("act2", "conv"):
        check(model.train(), images, expected, layer)
    model.requires_grad_(False)
    check(model, images, expected)
    model.eval().requires_grad_(True)
    model(images).sum().backward()
    check(model, images, expected)
    here, there = inspect_layers(*small("cpu")), inspect_layers(model, images)
    assert [(info.path, info.receptive_field) for info in there] == [(info.path, info.receptive_field) for info in here]


@pytest.mark.parametrize("inside", [False, True])
def test_under_inference_mode(device, expected, inside):
    model, images = small(device)
    with torch.inference_mode():
        check(small(device)[0] if inside else model, images.clone(), expected)


@pytest.mark.filterwarnings("error:.*deterministic")
def test_under_no_grad_and_with_deterministic_algorithms(device, expected, monkeypatch):
    """Operations without a deterministic implementation would warn, and the warning is an error here."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model, images = small(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.no_grad():
            one, other = check(model, images, expected), check(model, images, expected)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(raw, other.maps[key]) for key, raw in one.maps.items())


def test_channels_last(there, exact, batch, device):
    network = copy.deepcopy(there).to(memory_format=torch.channels_last)
    images = batch[:2].to(device).contiguous(memory_format=torch.channels_last)
    layers, methods = ["layer3[-2]", "layer4[-1]"], ["gradcam", "hirescam", "eigencam"]
    here = whycam.explain(exact, batch[:2].double(), layers, methods)
    assert_maps_close(whycam.explain(network, images, layers, methods).maps, here.maps, 1e-2)


def test_checkpointed_block(device):
    torch.manual_seed(0)
    plain, images = Checkpointed(None).double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model = Checkpointed(False).double().eval()
    model.load_state_dict(plain.state_dict())
    methods = ["gradcam", "shapleycam", "fullgrad", "inputgradient", "noisy(gradcam, n=2)", "ablationcam", "eigencam"]
    for layer in ("stem", "block[0]", "behind"):
        here = whycam.explain(plain, images, layer, methods, 1)
        there = whycam.explain(model.to(device), images.to(device), layer, methods, 1)
        assert_maps_close(there.maps, here.maps, 1e-9)


def test_data_parallel(device, expected):
    model, images = small(device)
    parallel = nn.DataParallel(model)
    parallel(images)
    check(parallel, images, expected)
    layers = whycam.explain(parallel, images).layers
    assert layers == whycam.explain(model, images).layers


@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler about itself
def test_compiled_for_this_device(device, expected):
    model, images = small(device)
    eager = model(images)
    compiled = torch.compile(model)
    try:
        with torch.no_grad():
            answer = compiled(images)
    except Exception as error:
        pytest.skip(f"torch.compile does not work here ({type(error).__name__}: {str(error).splitlines()[0]})")
    assert relative_error(answer, eager) < 1e-9
    check(compiled, images, expected)
    with torch.no_grad():
        assert relative_error(compiled(images), eager) < 1e-9
    part = small(device)[0]
    part.conv2.compile()
    check(part, images, expected)


def test_on_a_stream_of_the_caller(device, expected):
    """All work waits for the work on the caller's stream; a step on the default stream would not."""
    model, images = small(device)
    check(model, images, expected)
    if device.type == "cuda":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream) if device.type == "cuda" else nullcontext():
        late = torch.full_like(images, torch.nan)
        if device.type == "cuda":
            torch.cuda._sleep(200_000_000)  # a tenth of a second
        late.copy_(images)
        maps = whycam.explain(model, late, "act2", METHODS, [0, 1, 2, 3]).maps
        found = {key: raw.cpu() for key, raw in maps.items()}
    assert_maps_close(found, expected["act2"], 1e-9)


def test_network_that_moves_between_devices(device, expected):
    """The cached split of a network is valid on every device."""
    model, images = small("cpu")
    for place in ("cpu", device, "cpu", device):
        check(model.to(place), images.to(place), expected)


def test_pickled_explainer(device):
    model, images = small(device)
    explainer = whycam.Explainer(model, "act2", ["gradcam", "ablationcam"], 1)
    first = explainer(images)
    again = pickle.loads(pickle.dumps(explainer))(images)
    assert_maps_close(again.maps, first.maps, 1e-12)


def test_differentiable_maps(device):
    gradients = []
    for place in ("cpu", device):
        model, images = small(place)
        explained = whycam.explain(model, images, "act2", ["gradcam", "layercam"], 1, differentiable=True)
        sum(raw.square().sum() for raw in explained.maps.values()).backward()
        gradients.append(model.conv.weight.grad)
        assert all(raw.requires_grad for raw in explained.maps.values())
    assert relative_error(gradients[1], gradients[0]) < 1e-9


def count_tensors():
    return sum(1 for one in gc.get_objects() if type(one) in (torch.Tensor, nn.Parameter))


@pytest.mark.parametrize(("methods", "calls"), [(METHODS, 50), (EVERY, 4)])
def test_nothing_is_left_after_many_calls(device, methods, calls):
    """No memory, tensors or hooks are left, and no call needs more memory than the one before."""
    model, images = small(device, size=8)
    before = state_of(model)
    explainer = whycam.Explainer(model, "act2", methods, {"predicted": None, "one": 1})
    cuda = device.type == "cuda"

    def held():
        gc.collect()
        if cuda:
            torch.cuda.synchronize()
        return count_tensors(), torch.cuda.memory_allocated() if cuda else 0

    for _ in range(2):
        explainer(images)
    base = held()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        explainer(images)
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(calls):
        explainer(images)
    if cuda:
        # If only the garbage collector freed graphs, they would accumulate between its runs.
        assert torch.cuda.max_memory_allocated() <= 1.1 * most
    assert held() == base
    assert state_of(model) == before


def test_nothing_is_left_after_a_failure(device):
    model, images = small(device)
    before = state_of(model)

    def target(_logits):
        raise ZeroDivisionError

    def fail():
        with pytest.raises(ZeroDivisionError):
            whycam.explain(model, images, "act2", METHODS, target)

    fail()
    gc.collect()
    base = torch.cuda.memory_allocated() if device.type == "cuda" else count_tensors()
    for _ in range(5):
        fail()
    gc.collect()
    assert (torch.cuda.memory_allocated() if device.type == "cuda" else count_tensors()) == base
    assert state_of(model) == before


def test_full_gpu_memory_is_one_sentence(device):
    """The allocator's own error for a pebibyte; the device works afterwards."""
    message = r"^(the GPU's )?memory is full: [\d.,]+ [MGTP]iB more were asked for; ask for less$"
    with pytest.raises(HardwareError, match=message), within_hardware("ask for less"):
        torch.empty(2**50, dtype=torch.uint8, device=device)
    assert torch.ones(3, device=device).sum() == 3
