"""A study's report in a notebook's output: a frame that works, shut off from the page around it."""

from __future__ import annotations

from test_report_opens import RECIPES

from whycam.report import write_report
from whycam.study.folder import Study


def test_the_report_works_in_a_notebook_frame(made, browser, tmp_path):
    study = made("plain", RECIPES["plain"]).study
    page_file = tmp_path / "notebook.html"
    page_file.write_text(f"<!doctype html><title>notebook</title>{study._repr_html_()}", encoding="utf-8")
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    page = context.new_page()
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(page_file.as_uri())
    frame = page.frames[1]
    frame.wait_for_selector("html[data-ready]")
    assert frame.evaluate("whycam.selection.length") == 60
    frame.click("#gallery .tile >> nth=2")
    frame.press("#gallery .tile >> nth=2", "j")
    frame.wait_for_function("() => whycam.state.image === 3")
    assert frame.evaluate("() => { try { return parent.document.title; } catch { return 'shut off'; } }") == "shut off"
    assert page.locator("iframe").bounding_box()["height"] > 700
    assert troubles == []
    context.close()


def test_reports_that_cannot_be_embedded_give_the_reason(made, tmp_path):
    study = made("plain", RECIPES["plain"]).study
    elsewhere = Study(tmp_path, study.manifest, study.metrics)
    assert "has no report yet" in elsewhere._repr_html_()
    write_report(study, tmp_path / "report.html", budget=1000)
    assert "has files beside it" in elsewhere._repr_html_()
    assert "60 errors of 400 images" in elsewhere._repr_html_()
