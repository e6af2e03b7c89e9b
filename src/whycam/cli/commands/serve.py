"""``whycam serve``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from whycam.cli import console
from whycam.device import pick_device
from whycam.errors import WhycamError, require_app_packages
from whycam.models import load
from whycam.models.checkpoint import CONFIG_FILE, read_config
from whycam.models.loading import BUNDLED
from whycam.study.folder import MANIFEST, Study

if TYPE_CHECKING:
    from whycam.app.live_explainer import LiveExplainer


def serve(options: Namespace) -> None:
    """Serve a study's report, or a page that explains images, until stopped."""
    require_app_packages("whycam serve")
    from whycam.app.pages import live_page, report_chunks, report_page
    from whycam.app.routes import Site
    from whycam.app.security import AllowedHosts, check_origins
    from whycam.app.server import DEFAULTS, listen, serve as serve_site, server_url

    frames = check_origins(options.allow_frame)
    study = Study.load(options.source) if (Path(options.source) / MANIFEST).exists() else None
    checkpoint = _checkpoint(options, study)
    hosts = AllowedHosts.of_server(options.host, options.allow_host)
    # Listen first: loading a model takes seconds, and a port that is taken should be reported at once.
    with listen(options.host, options.port) as listener:
        live = page = report = None
        if checkpoint is not None:
            live = _load_live(options, study, checkpoint)
            page = live_page(live, report="/" if study else None, max_bytes=DEFAULTS.file_bytes, frames=frames)
        if study is not None:
            report = report_page(study, live="/live" if live else None, frames=frames)
        site = Site(hosts, report, report_chunks(study) if study else {}, live, page)
        start = server_url(listener, options.host)
        live_url = f"{start}live" if study else start
        urls = {"report": start if study else None, "live": live_url if live else None}
        serve_site(site, listener, lambda: _announce(options, start, urls))


def _announce(options: Namespace, start: str, urls: dict[str, str | None]) -> None:
    if options.json:
        console.say_json({"url": start, **urls})
    else:
        for name, url in urls.items():
            if url:
                console.say(f"{name}: {url}")
        console.note("serving; Ctrl-C stops it")
    console.flush()


def _checkpoint(options: Namespace, study: Study | None) -> str | None:
    """The model behind the live page: the one that was named, or the bundled one that the study was made with."""
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


def _load_live(options: Namespace, study: Study | None, checkpoint: str) -> LiveExplainer:
    from whycam.app.live_explainer import LiveExplainer

    model, spec = load(checkpoint, device=pick_device(options.device))
    if study is not None and spec.weights_sha256 != study.manifest["model"]["weights_sha256"]:
        raise WhycamError(
            f"{checkpoint}: not the model of the study {study.path} (its weights differ); give the study's own "
            "checkpoint, or serve the two separately"
        )
    for text in spec.notes:
        console.note(text)
    return LiveExplainer(model, spec, options.layers)
