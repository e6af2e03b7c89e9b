"""``whycam summary``, ``layers`` and ``methods``."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from whycam.cam.inspect import LayerInfo, default_layer, inspect_layers
from whycam.cam.methods import COMBINATORS, METHODS
from whycam.cam.methods.registry import load_entry_points, summary_of, written
from whycam.cli import console
from whycam.models import ARCHITECTURES, load, summarize
from whycam.options import options_of


def summary(options: Namespace) -> None:
    """Print a network's layer table."""
    table = summarize(*_network(options.checkpoint))
    if options.json:
        console.say_json(dataclasses.asdict(table))
    else:
        console.say(str(table))


def layers(options: Namespace) -> None:
    """List the layers of a network that can be explained."""
    model, shape = _network(options.checkpoint)
    # Receptive fields are measured by gradients. Random pixels reach every ReLU; a constant image might not.
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    found = inspect_layers(model.eval(), image)
    chosen = default_layer(model, image).path
    if options.json:
        console.say_json({"default": chosen, "layers": [dataclasses.asdict(info) for info in found]})
        return
    width = max(len(info.path) for info in found)
    console.say(f"{'layer':<{width}}  {'type':<12} {'channels':>8} {'grid':>9}  a cell sees")
    for info in found:
        row = f"{info.path:<{width}}  {info.kind:<12} {info.channels:>8} {_times(info.grid):>9}"
        console.say(f"{row}  {_remarks(info, shape[1:], is_default=info.path == chosen)}")


def _network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of a checkpoint or an architecture, and the shape (C, H, W) of its input."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name](10), (3, 32, 32)
    model, spec = load(name)
    return model, (1 if spec.preprocess.channels == "L" else 3, *spec.preprocess.size)


def _remarks(info: LayerInfo, size: tuple[int, ...], *, is_default: bool) -> str:
    text = "the whole image" if info.receptive_field == size else f"{_times(info.receptive_field)} pixels"
    text += "  ← default" if is_default else ""
    return text if info.affects_output else f"{text}  (the output does not depend on this layer)"


def _times(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def methods(options: Namespace) -> None:
    """List the explanation methods, their options, and the combinators."""
    load_entry_points()
    known = sorted(METHODS.values(), key=lambda method: method.name)
    combinators = [
        {"name": name, "summary": summary_of(function), "options": options_of(function)}
        for name, function in sorted(COMBINATORS.items())
    ]
    if options.json:
        rows = [
            {"name": m.name, "title": m.title, "summary": m.summary, "paper": m.paper, "needs": sorted(m.needs),
             "options": m.defaults}
            for m in known
        ]  # fmt: skip
        console.say_json({"methods": rows, "combinators": combinators})
        return
    width = max(len(method.name) for method in known)
    for method in known:
        needs = ", ".join(sorted(method.needs)) or ("images only" if method.scope == "input" else "activations only")
        console.say(f"{method.name:<{width}}  {method.title}: {method.summary}")
        console.say(f"{'':<{width}}  {method.paper}; needs {needs}")
    console.say("\noptions, written after the method's name; name only those that you change:\n")
    for method in known:
        if method.defaults:
            console.say(f"  {written(method.name, method.defaults)}")
    console.say("\ncombinators, written around a method or around another combinator, with options of their own:\n")
    _say_combinators(combinators)


def _say_combinators(combinators: Sequence[dict[str, Any]]) -> None:
    calls = [written(entry["name"], entry["options"], "METHOD") for entry in combinators]
    width = max(map(len, calls))
    for call, entry in zip(calls, combinators, strict=True):
        console.say(f"  {call:<{width}}  {entry['summary']}")
