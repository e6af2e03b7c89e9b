"""The pages: the live page, and a report with or without a link to it."""

from __future__ import annotations

import re
from importlib.resources import files

import whycam
from whycam.data import take
from whycam.report import write_report
from whycam.study import run_study


def test_live_page_holds_the_reports_front_end(server):
    page = server.ask().body.decode()
    for name in ("color.js", "evidence.js", "report.css"):
        assert (files("whycam.report") / "assets" / name).read_text(encoding="utf-8") in page


def test_report_and_its_files_are_served_unchanged(study_server, study_folder):
    page = study_server.ask()
    on_disk = (study_folder / "report.html").read_text(encoding="utf-8")
    assert page.body.decode() == on_disk
    assert study_server.pages == {"url": study_server.url, "report": study_server.url, "live": None}
    assert study_server.explain(b"x").status == 404
    chunks = set(re.findall(r"report_files/[0-9a-f.js-]+", on_disk))
    assert chunks
    for chunk in chunks:
        assert study_server.ask(path=f"/{chunk}").body == (study_folder / chunk).read_bytes()


def test_study_of_bundled_weights_has_a_live_page(launch, loaded, photo, tmp_path):
    study = run_study(*loaded, take(whycam.open_source("bundled"), 24), tmp_path / "study")
    write_report(study, tmp_path / "study" / "report.html")
    served = launch(tmp_path / "study", "--port", "0", "--json")
    assert served.pages["live"] == f"{served.url}live"
    report, live = served.ask().body.decode(), served.ask(path="/live").body.decode()
    assert '<a class="try" href="/live">Try an image</a>' in report
    assert "What does it see in your image?" in live
    assert '<a href="/">Report</a>' in live
    assert served.explain(photo).status == 200
