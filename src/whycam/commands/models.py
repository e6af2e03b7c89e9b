"""``whycam summary`` and ``whycam methods``."""

from __future__ import annotations

from argparse import Namespace

from whycam import console
from whycam.cam.methods import METHODS
from whycam.models import ARCHITECTURES, load, summarise


def summary(options: Namespace) -> None:
    """Print a network's layer table."""
    if options.checkpoint in ARCHITECTURES:
        console.say(str(summarise(ARCHITECTURES[options.checkpoint](10))))
        return
    model, spec = load(options.checkpoint)
    channels = 1 if spec.preprocess.channels == "L" else 3
    console.say(str(summarise(model, (channels, *spec.preprocess.size))))


def methods(options: Namespace) -> None:
    """List the explanation methods."""
    known = sorted(METHODS.values(), key=lambda method: method.name)
    if options.json:
        rows = [{"name": m.name, "title": m.title, "summary": m.summary, "paper": m.paper} for m in known]
        console.say_json({"methods": rows})
        return
    width = max(len(method.name) for method in known)
    for method in known:
        needs = ", ".join(sorted(method.needs)) or "activations only"
        console.say(f"{method.name:<{width}}  {method.title}: {method.summary}")
        console.say(f"{'':<{width}}  {method.paper}; needs {needs}")
