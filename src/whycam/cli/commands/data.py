"""``whycam data``."""

from __future__ import annotations

from argparse import Namespace

from whycam.cli import console
from whycam.data import OFFICIAL_URL, download_cifar10


def data(options: Namespace) -> None:
    """Download, verify and unpack CIFAR-10."""
    with console.progress() as show:
        folder = download_cifar10(
            options.directory,
            url=options.url or OFFICIAL_URL,
            progress=lambda done, total: show("download", done, total),
        )
    if options.json:
        console.say_json({"folder": str(folder)})
    else:
        console.say(f"CIFAR-10 is complete and verified: {folder}")
