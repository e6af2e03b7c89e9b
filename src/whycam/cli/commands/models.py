"""``whycam summary``, ``layers`` and ``methods``."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

import torch

from whycam.cam.inspect import default_layer, inspect_layers
from whycam.cam.methods import COMBINATORS, METHODS
from whycam.cam.methods.registry import load_entry_points, summary_of, written
from whycam.cli import console
from whycam.models import ARCHITECTURES, load, summarize
from whycam.options import options_of


def summary(options: Namespace) -> None:
    """Print a network's layer table."""
    if options.checkpoint in ARCHITECTURES:
        table = summarize(ARCHITECTURES[options.checkpoint](10))
    else:
        model, spec = load(options.checkpoint)
        channels = 1 if spec.preprocess.channels == "L" else 3
        table = summarize(model, (channels, *spec.preprocess.size))
    if options.json:
        console.say_json(dataclasses.asdict(table))
    else:
        console.say(str(table))


def layers(options: Namespace) -> None:
    """List a network's layers that have a map."""
    if options.checkpoint in ARCHITECTURES:
        model, size, channels = ARCHITECTURES[options.checkpoint](10).eval(), (32, 32), 3
    else:
        model, spec = load(options.checkpoint)
        size, channels = spec.preprocess.size, 1 if spec.preprocess.channels == "L" else 3
    # What a cell sees is measured by gradients, which need an image that leaves no ReLU at rest everywhere.
    image = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    places = inspect_layers(model, image)
    chosen = default_layer(model, image).path
    if options.json:
        console.say_json({"default": chosen, "layers": [dataclasses.asdict(info) for info in places]})
        return
    width = max(len(info.path) for info in places)
    console.say(f"{'layer':<{width}}  {'type':<12} {'channels':>8} {'grid':>9}  a cell sees")
    for info in places:
        grid, reach = ("×".join(map(str, values)) for values in (info.grid, info.receptive_field))
        sees = "the whole image" if info.receptive_field == tuple(size) else f"{reach} pixels"
        note = "  ← default" if info.path == chosen else ""
        note += "" if info.affects_output else "  (the answer does not depend on it)"
        console.say(f"{info.path:<{width}}  {info.kind:<12} {info.channels:>8} {grid:>9}  {sees}{note}")


def methods(options: Namespace) -> None:
    """List the explanation methods, their options, and what makes methods of methods."""
    load_entry_points()
    known = sorted(METHODS.values(), key=lambda method: method.name)
    combinators = [(name, summary_of(function), options_of(function)) for name, function in sorted(COMBINATORS.items())]
    if options.json:
        rows = [
            {"name": m.name, "title": m.title, "summary": m.summary, "paper": m.paper, "needs": sorted(m.needs),
             "options": m.defaults}
            for m in known
        ]  # fmt: skip
        made = [{"name": name, "summary": summary, "options": changes} for name, summary, changes in combinators]
        console.say_json({"methods": rows, "combinators": made})
        return
    width = max(len(method.name) for method in known)
    for method in known:
        needs = ", ".join(sorted(method.needs)) or ("images only" if method.scope == "input" else "activations only")
        console.say(f"{method.name:<{width}}  {method.title}: {method.summary}")
        console.say(f"{'':<{width}}  {method.paper}; needs {needs}")
    console.say("\noptions, written behind a method's name with whatever is to be changed:\n")
    for method in known:
        if method.defaults:
            console.say(f"  {written(method.name, method.defaults)}")
    console.say("\ncombinators, written around a method, with options of its own or another combinator inside:\n")
    lines = [(written(name, changes, "METHOD"), summary) for name, summary, changes in combinators]
    width = max(len(line) for line, _ in lines)
    for line, summary in lines:
        console.say(f"  {line:<{width}}  {summary}")
