"""``whycam summary`` and ``whycam methods``."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from whycam import console
from whycam.cam.methods import METHODS
from whycam.models import ARCHITECTURES, load, summarise


def summary(options: Namespace) -> None:
    """Print a network's layer table."""
    if options.checkpoint in ARCHITECTURES:
        table = summarise(ARCHITECTURES[options.checkpoint](10))
    else:
        model, spec = load(options.checkpoint)
        channels = 1 if spec.preprocess.channels == "L" else 3
        table = summarise(model, (channels, *spec.preprocess.size))
    if options.json:
        console.say_json(dataclasses.asdict(table))
    else:
        console.say(str(table))


def methods(options: Namespace) -> None:
    """List the explanation methods."""
    known = sorted(METHODS.values(), key=lambda method: method.name)
    if options.json:
        rows = [{"name": m.name, "title": m.title, "summary": m.summary, "paper": m.paper} for m in known]
        console.say_json({"methods": rows})
        return
    width = max(len(method.name) for method in known)
    for method in known:
        needs = "gradients" if method.needs_gradients else "activations only"
        console.say(f"{method.name:<{width}}  {method.title}: {method.summary}")
        console.say(f"{'':<{width}}  {method.paper}; needs {needs}")
