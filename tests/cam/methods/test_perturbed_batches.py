"""Means over perturbed copies of the batch: results do not depend on the memory that is used, and memory is bounded."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from networks import InPlace, count_images, make_network

import whycam
from whycam.cam.methods._perturbed_batches import Noise, batched_copies, mean
from whycam.cam.passes.runner import PassRunner
from whycam.seeds import generator

METHODS = ["noisy(gradcam, n=11)", "noisy(scorecam, n=3)", "augmented(gradcam)", "smoothgradcam++(n=11)",
           "noisy(smoothgradcam++(n=3), n=3)", "noisy(refinecam, n=5)"]  # fmt: skip


def fresh():
    return generator(0, "a purpose")


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 8, 8), (1, 4, 4), (1, 2, 3)])
@pytest.mark.parametrize("count", [1, 4, 15, 16, 17, 33, 64])
def test_noise_equals_one_large_draw(count, shape):
    whole = torch.randn((count, *shape), generator=fresh(), dtype=torch.float32)
    noise = Noise.from_single_tensor(fresh(), count, shape)
    assert torch.equal(torch.stack([noise[index] for index in range(count)]), whole)
    for index in (count - 1, 0, count // 2):  # in any order
        assert torch.equal(noise[index], whole[index])


def test_noise_equals_single_draws():
    draw = fresh()
    expected = [torch.randn((2, 3), generator=draw, dtype=torch.float64) for _ in range(9)]
    noise = Noise(fresh(), 9, (2, 3), dtype=torch.float64)
    for index in (0, 1, 2, 7, 8, 3, 0):
        assert torch.equal(noise[index], expected[index])


def test_batched_copies(monkeypatch):
    for count, images, rows in [(1, 1, 64), (7, 3, 64), (7, 3, 7), (200, 1, 64), (5, 100, 64)]:
        monkeypatch.setattr("whycam.cam.methods._perturbed_batches.ROWS", rows)
        chunks = list(batched_copies(count, images))
        assert [index for chunk in chunks for index in chunk] == list(range(count))
        assert all(len(chunk) * images <= max(rows, images) for chunk in chunks)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 13])
def test_mean(count):
    maps = torch.randn(count, 2, 3, generator=fresh(), dtype=torch.float64)
    torch.testing.assert_close(mean(iter(maps), held=4), maps.mean(0), rtol=0, atol=1e-15)
    assert torch.equal(mean(iter(maps)), torch.stack(list(maps)).mean(0))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_maps_do_not_depend_on_the_cache_size(cache_bytes, monkeypatch):
    module, images = make_network(InPlace, batch=2, size=6)
    expected = whycam.explain(module, images, ["norm", "act2"], METHODS, {"a": 1, "b": None}).maps
    monkeypatch.setattr("whycam.cam.passes.runner._CACHE_BYTES", cache_bytes)
    monkeypatch.setattr("whycam.cam.methods._perturbed_batches.ROWS", 4)
    actual = whycam.explain(module, images, ["norm", "act2"], METHODS, {"a": 1, "b": None}).maps
    for key, raw in expected.items():
        torch.testing.assert_close(actual[key], raw, rtol=0, atol=1e-12, msg=str(key))


@pytest.mark.parametrize("method", ["noisy(gradcam, n={})", "smoothgradcam++(n={})"])
def test_memory_does_not_grow_with_the_number_of_copies(method, monkeypatch):
    """Neither the tensors during the last pass nor the number of runners of perturbed copies grow with n."""
    module, images = make_network(InPlace, batch=2, size=24)
    monkeypatch.setattr("whycam.cam.passes.runner._CACHE_BYTES", 0)
    alive = weakref.WeakSet()
    passes, most_runners, bytes_held = 0, 0, 0

    def measure(*_):
        nonlocal passes, most_runners, bytes_held
        passes += 1
        most_runners = max(most_runners, len(alive))
        if passes == last:
            # Plain tensors only: fake tensors of a compiler, which other tests may have left, have no memory.
            storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) is torch.Tensor]
            bytes_held = sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def run_perturbed(runner, *arguments, **options):
        perturbed_runner = original(runner, *arguments, **options)
        alive.add(perturbed_runner)
        return perturbed_runner

    original = PassRunner._run_perturbed
    monkeypatch.setattr(PassRunner, "_run_perturbed", run_perturbed)
    handle = module.head.register_forward_hook(measure)
    measured = {}
    for n in (64, 192):
        passes, most_runners, last = 0, 0, 1 + n // 32  # 32 copies of two images in each pass
        gc.collect()
        whycam.explain(module, images, "act2", method.format(n), 1)
        assert passes == last
        measured[n] = most_runners, bytes_held
    handle.remove()
    assert measured[64][0] == measured[192][0] <= 2
    # The noise or the images of 128 more copies would be 3·24·24 numbers of at least 4 bytes each.
    assert measured[192][1] - measured[64][1] < 128 * 3 * 24 * 24 * 4 / 2


def test_cached_traces_are_shared_by_methods():
    module, images = make_network(InPlace, batch=2, size=6)
    methods = ["noisy(gradcam, n=3)", "noisy(layercam, n=3)"]
    passes = count_images(
        module.conv, lambda: whycam.explain(module, images, ["norm", "act2"], methods, {"a": 1, "b": None})
    )
    assert passes == 2 + 3 * 2


def test_noise_of_an_image_does_not_depend_on_the_batch():
    module, images = make_network(InPlace, batch=40, size=6)
    for method in ("noisy(gradcam, n=5)", "smoothgradcam++(n=5)"):
        together = whycam.explain(module, images, "act2", method).map()
        for index in (0, 39):
            alone = whycam.explain(module, images[index : index + 1], "act2", method).map()
            torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-12)
