"""The old place of `whycam.options`; it goes with version 0.3."""

from whycam._lazy import lazy_names

__getattr__ = lazy_names(
    __name__, moved={name: f"whycam.options:{name}" for name in ("Count", "Deviation", "Range", "Share")}
)
