"""The version of whycam and of the packages that its numbers depend on."""

from __future__ import annotations

__version__ = "0.2.0"

_PACKAGES = ("torch", "numpy", "pyarrow", "pillow", "safetensors")


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that the numbers depend on; None for one that is not installed."""
    # Imported here: both are slow to import, and every command imports this module.
    import platform

    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
