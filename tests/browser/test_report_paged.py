"""Beyond the budget: the same page, with its pieces beside it."""

from __future__ import annotations

import shutil

import pytest
from make_study import Recipe
from test_report_opens import LARGE

from whycam.report import write_report

RECIPE = Recipe(n=100, errors=36, size=224, layers=LARGE, methods=("gradcam", "hirescam"), noise=True)


@pytest.fixture
def paged(made):
    return made("paged", RECIPE, budget=400_000)


def test_the_same_page_loads_only_what_it_shows(paged, opened):
    folder = paged.page.with_name("report_files")
    pieces = sorted(folder.iterdir())
    assert len(pieces) > 2
    assert paged.page.stat().st_size < 400_000
    view = opened(paged.page)
    assert view.count() == "36 errors"
    asked = [url for url in view.requests if url != view.url]
    assert 0 < len(set(asked)) < len(pieces)
    assert {url.rsplit("/", 1)[0] for url in asked} == {folder.as_uri()}
    assert folder.name in view.page.inner_text("#methods")
    view.set(image=35)
    view.page.wait_for_function("() => whycam.mapOf(35, 1, 1, 1).state === 'ok'")
    assert pieces[-1].as_uri() in view.requests


def test_pages_agree_with_one_file(paged, opened, tmp_path):
    whole = write_report(paged.study, tmp_path / "whole.html", budget=10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.html"]
    read = "e => [0, 1].map(l => Array.from(whycam.mapOf(e, 1, l, 1).cells))"
    single, many = opened(whole), opened(paged.page)
    for error in (0, 18, 35):
        many.set(image=error)
        many.page.wait_for_function(f"() => whycam.mapOf({error}, 1, 1, 1).state === 'ok'")
        assert many.run(read, error) == single.run(read, error)


def test_a_missing_chunk_file_is_reported(paged, opened, tmp_path):
    shutil.copy(paged.page, tmp_path)
    view = opened(tmp_path / "report.html")
    view.page.wait_for_function("() => document.querySelector('#detail .odd')?.textContent.includes('missing')")
    assert view.count() == "36 errors"
    assert all("ERR_FILE_NOT_FOUND" in trouble for trouble in view.troubles)
    view.troubles.clear()


def test_stale_chunk_files_are_deleted(made, tmp_path):
    study = made("paged", RECIPE, budget=400_000).study
    page = tmp_path / "report.html"
    write_report(study, page, budget=400_000)
    assert (tmp_path / "report_files").is_dir()
    (tmp_path / "report_files" / "mine.txt").write_text("kept")
    write_report(study, page, budget=10**9)
    assert [path.name for path in (tmp_path / "report_files").iterdir()] == ["mine.txt"]
