"""Other libraries' names on this engine, so that code written for them runs unchanged.

`whycam.compat.pytorch_grad_cam` has the public names of grad-cam 1.5.7. Import it under its own name, or let existing
imports find it::

    import whycam.compat
    whycam.compat.alias("pytorch_grad_cam")
    from pytorch_grad_cam import GradCAM  # is whycam.compat.pytorch_grad_cam.GradCAM
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from whycam.errors import WhycamError

_OFFERED = ("pytorch_grad_cam",)


def alias(name: str) -> None:
    """Let ``import name`` find this package's version of it, submodules included; a second call changes nothing.

    Args:
        name: "pytorch_grad_cam".

    Raises:
        WhycamError: there is no such version, or the original has been imported already.
    """
    if name not in _OFFERED:
        raise WhycamError(f"no compatible version of {name!r} is offered; there is {', '.join(_OFFERED)}")
    ours = importlib.import_module(f"{__name__}.{name}")
    if sys.modules.get(name, ours) is not ours:
        raise WhycamError(
            f"{name} itself has been imported already: call whycam.compat.alias({name!r}) before anything imports it"
        )
    # One module object under both names: a class must not exist twice, isinstance would fail between the two.
    sys.modules[name] = ours
    for found in pkgutil.walk_packages(ours.__path__, f"{ours.__name__}."):
        module = importlib.import_module(found.name)
        sys.modules[name + found.name.removeprefix(ours.__name__)] = module
