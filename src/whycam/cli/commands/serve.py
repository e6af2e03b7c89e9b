"""``whycam serve``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from whycam.cli import console
from whycam.device import pick_device
from whycam.errors import WhycamError, require_app_packages
from whycam.models import load
from whycam.models.checkpoint import CONFIG_FILE, ModelSpec, read_config
from whycam.models.loading import BUNDLED
from whycam.study.folder import MANIFEST, Study


def serve(options: Namespace) -> None:
    """Serve a study's report, or a page that explains images, until stopped."""
    require_app_packages("whycam serve")
    from whycam.app.guard import Hosts
    from whycam.app.live import LiveModel
    from whycam.app.pages import live_page, report_chunks, report_page
    from whycam.app.routes import Site
    from whycam.app.server import DEFAULTS, addresses, allowed_frames, listen, serve as serve_site

    frames = allowed_frames(options.allow_frame)
    study = Study.load(options.source) if (Path(options.source) / MANIFEST).exists() else None
    checkpoint = _checkpoint(options, study)
    # The address is taken first: loading a network takes seconds, a taken port is known at once.
    with listen(options.host, options.port) as listener:
        live = None
        if checkpoint is not None:
            model, spec = load(checkpoint, device=pick_device(options.device))
            if study is not None:
                _same_weights(study, spec, checkpoint)
            for text in spec.notes:
                console.note(text)
            live = LiveModel(model, spec, options.layers)
        site = Site(
            hosts=Hosts.serving(options.host, options.allow_host),
            report=report_page(study, live="/live" if live else None, frames=frames) if study else None,
            chunks=report_chunks(study) if study else {},
            live=live,
            live_page=live_page(live, report="/" if study else None, max_bytes=DEFAULTS.file_bytes, frames=frames)
            if live
            else None,
        )
        start = addresses(listener, options.host)

        def ready() -> None:
            pages = {"report": start if study else None, "live": (f"{start}live" if study else start) if live else None}
            if options.json:
                console.say_json({"url": start, **pages})
            else:
                for name, address in pages.items():
                    if address:
                        console.say(f"{name}: {address}")
                console.note("serving; Ctrl-C stops it")
            console.flush()

        serve_site(site, listener, ready)


def _checkpoint(options: Namespace, study: Study | None) -> str | None:
    """The network behind the live page; a study of bundled weights needs no naming of them."""
    if study is None:
        if options.checkpoint is not None:
            raise WhycamError(f"{options.source} is no study folder, and --checkpoint names the network of a study")
        return str(options.source)
    if options.checkpoint is not None:
        return str(options.checkpoint)
    digest = study.manifest["model"]["weights_sha256"]
    for name, folder in BUNDLED.items():
        if read_config(folder / CONFIG_FILE).weights_sha256 == digest:
            return name
    return None


def _same_weights(study: Study, spec: ModelSpec, checkpoint: str) -> None:
    if spec.weights_sha256 != study.manifest["model"]["weights_sha256"]:
        raise WhycamError(
            f"{checkpoint}: not the network that {study.path} is a study of (its weights differ); give that one, or "
            f"serve them apart"
        )
