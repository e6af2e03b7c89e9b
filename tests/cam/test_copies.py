"""Averages over altered copies of the batch: the same however few are held at a time, and only few are held."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from networks import InPlace
from test_perturbation import make, rows_run

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
def test_noise_is_what_one_draw_gives(count, shape):
    whole = torch.randn((count, *shape), generator=fresh(), dtype=torch.float32)
    noise = Noise.from_single_tensor(fresh(), count, shape)
    assert torch.equal(torch.stack([noise[index] for index in range(count)]), whole)
    for index in (count - 1, 0, count // 2):  # in any order
        assert torch.equal(noise[index], whole[index])


def test_noise_is_what_single_draws_give():
    draw = fresh()
    expected = [torch.randn((2, 3), generator=draw, dtype=torch.float64) for _ in range(9)]
    noise = Noise(fresh(), 9, (2, 3), dtype=torch.float64)
    for index in (0, 1, 2, 7, 8, 3, 0):
        assert torch.equal(noise[index], expected[index])


def test_together(monkeypatch):
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


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_maps_are_the_same_however_much_is_kept(room, monkeypatch):
    module, images = make(InPlace, batch=2, size=6)
    expected = whycam.explain(module, images, ["norm", "act2"], METHODS, {"a": 1, "b": None}).maps
    monkeypatch.setattr("whycam.cam.passes.runner._CACHE_BYTES", room)
    monkeypatch.setattr("whycam.cam.methods._perturbed_batches.ROWS", 4)
    actual = whycam.explain(module, images, ["norm", "act2"], METHODS, {"a": 1, "b": None}).maps
    for key, raw in expected.items():
        torch.testing.assert_close(actual[key], raw, rtol=0, atol=1e-12, msg=str(key))


@pytest.mark.parametrize("method", ["noisy(gradcam, n={})", "smoothgradcam++(n={})"])
def test_memory_does_not_grow_with_the_number_of_copies(method, monkeypatch):
    """What is alive in the middle of a pass, and how many runs on copies there are."""
    module, images = make(InPlace, batch=2, size=24)
    monkeypatch.setattr("whycam.cam.passes.runner._CACHE_BYTES", 0)
    alive = weakref.WeakSet()
    passes, most_runs, held = 0, 0, 0

    def look(*_):
        nonlocal passes, most_runs, held
        passes += 1
        most_runs = max(most_runs, len(alive))
        if passes == last:
            # The plain ones: a compiler's stand-ins, which other tests may have left, have no memory.
            storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) is torch.Tensor]
            held = sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def copies(run, *arguments, **options):
        made = original(run, *arguments, **options)
        alive.add(made)
        return made

    original = PassRunner._run_perturbed
    monkeypatch.setattr(PassRunner, "_run_perturbed", copies)
    handle = module.head.register_forward_hook(look)
    seen = {}
    for n in (64, 192):
        passes, most_runs, last = 0, 0, 1 + n // 32  # of two images each
        gc.collect()
        whycam.explain(module, images, "act2", method.format(n), 1)
        assert passes == last
        seen[n] = most_runs, held
    handle.remove()
    assert seen[64][0] == seen[192][0] <= 2
    # Noise alone, or images, would be 3·24·24 numbers of at least 4 bytes for each of 128 copies.
    assert seen[192][1] - seen[64][1] < 128 * 3 * 24 * 24 * 4 / 2


def test_what_is_kept_is_shared():
    module, images = make(InPlace, batch=2, size=6)
    methods = ["noisy(gradcam, n=3)", "noisy(layercam, n=3)"]
    passes = rows_run(
        module.conv, lambda: whycam.explain(module, images, ["norm", "act2"], methods, {"a": 1, "b": None})
    )
    assert passes == 2 + 3 * 2


def test_an_image_meets_the_same_noise_whatever_the_batch():
    module, images = make(InPlace, batch=40, size=6)
    for method in ("noisy(gradcam, n=5)", "smoothgradcam++(n=5)"):
        together_ = whycam.explain(module, images, "act2", method).map()
        for index in (0, 39):
            alone = whycam.explain(module, images[index : index + 1], "act2", method).map()
            torch.testing.assert_close(alone[0], together_[index], rtol=0, atol=1e-12)
