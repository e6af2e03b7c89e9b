"""A real Chromium that opens real reports from the file system, with everything it asks for and says recorded."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from whycam.report import write_report
from whycam.study.folder import Study

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
from make_study import Recipe, make_study

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
)  # fmt: skip


def absent(reason: str) -> None:
    if os.environ.get("WHYCAM_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        absent("no Chromium here (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed (pip install playwright axe-playwright-python)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Made:
    study: Study
    page: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Reports by recipe, each made once."""
    known: dict[str, Made] = {}

    def make(name: str, recipe: Recipe, budget: int | None = None) -> Made:
        if name not in known:
            folder = make_study(tmp_path_factory.mktemp(name), recipe)
            study = Study.load(folder)
            page = folder / "report.html"
            write_report(study, page, **({} if budget is None else {"budget": budget}))
            known[name] = Made(study, page)
        return known[name]

    return make


@dataclass
class View:
    """An open report."""

    page: Any
    url: str
    requests: list[str]
    troubles: list[str]

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def settle(self) -> None:
        """Everything drawn, pictures unpacked."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def set(self, **state: Any) -> None:
        self.run("patch => { whycam.update(patch); whycam.flush(); }", state)
        self.settle()

    def count(self) -> str:
        return self.page.inner_text("#count")


def hear(view: View, text: str) -> None:
    # Chromium advises whoever reads a canvas back; here that is the tests alone.
    if "willReadFrequently" not in text:
        view.troubles.append(f"console: {text}")


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., View]]:
    """Open a report with the network off; at the end nothing was asked for and nothing was complained about."""
    contexts, views = [], []

    def opener(path: Path, hash: str = "", width: int = 1440, height: int = 1000, **options: Any) -> View:
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        url = path.as_uri()
        view = View(page, url, [], [])
        page.on("request", lambda request: view.requests.append(request.url.split("#")[0]))
        page.on("console", lambda message: hear(view, message.text))
        page.on("pageerror", lambda error: view.troubles.append(f"error: {error}"))
        page.goto(url + (f"#{hash}" if hash else ""))
        page.wait_for_selector("html[data-ready]")
        page.wait_for_function(
            "() => whycam.state.image < 0 || whycam.mapOf(whycam.state.image, 0, 0, 0).state !== 'waiting'"
        )
        page.wait_for_function("() => whycam.state.image < 0 || whycam.drawn()")
        view.settle()
        views.append(view)
        return view

    yield opener
    for context in contexts:
        context.close()
    for view in views:
        assert view.troubles == []
        assert [url for url in view.requests if not url.startswith("file:")] == []
