"""The report opens from a file, offline, whatever is in it, and its counts are the study's."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import pytest
from make_study import CIFAR10, HOSTILE, Recipe, smooth_map


def odd_map(rng, error, method, layer, target, side):
    """All zero, negative only, not finite, constant, and an ordinary one, in turn."""
    ordinary = smooth_map(rng, error, method, layer, target, side)
    match error % 5:
        case 0:
            return np.zeros((side, side), np.float32)
        case 1:
            return -np.abs(ordinary) - 0.1
        case 2:
            ordinary[0, 0], ordinary[-1, -1] = np.nan, np.inf
            return ordinary
        case 3:
            return np.full((side, side), 0.25, np.float32)
    return ordinary


WALK_MATRIX = """() => {
  const count = document.getElementById('count'), seen = [];
  for (const [i, row] of [...document.querySelector('#matrix').tBodies[0].rows].entries()) {
    for (let j = 0; j < 10; j++) {
      const cell = row.cells[j + 1], click = () => { cell.click(); whycam.flush(); return count.textContent; };
      if (i === j || !cell.textContent) { seen.push([i, j, cell.textContent, '', [], '']); continue; }
      const filtered = click(), ids = whycam.selection.map(e => whycam.core.ids[e]);
      seen.push([i, j, cell.textContent, filtered, ids, click()]);
    }
  }
  return seen;
}"""
HUNDRED = tuple(f"class number {i}" for i in range(100))
LARGE = (("layer3", "layer3", 1024, 14), ("layer4", "layer4", 2048, 7))
IDS = tuple(f"{'</script>' if i % 2 else chr(0x202E)}🦊\"'/{'x' * 300}{i}.png" for i in range(60))
RECIPES = {
    "plain": Recipe(n=400, errors=60, methods=("gradcam", "hirescam"), correct_explained=30),
    "hostile": Recipe(n=60, errors=30, classes=HOSTILE, ids=IDS),
    "none": Recipe(n=50, errors=0),
    "one": Recipe(n=50, errors=1),
    "hundred": Recipe(n=2000, errors=300, classes=HUNDRED),
    "large": Recipe(n=60, errors=12, size=224, layers=LARGE),
    "odd": Recipe(n=200, errors=40, make_map=odd_map),
    "unexplained": Recipe(n=200, errors=40, unexplained=25),
    "clustered": Recipe(n=900, errors=120, methods=("gradcam", "hirescam"), correct_explained=30),
    "older": Recipe(n=100, errors=20, neighbors=False, scores=None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_opens_without_requests_and_console_messages(name, made, opened):
    report = made(name, RECIPES[name])
    view = opened(report.page)
    errors = RECIPES[name].errors
    assert view.run("whycam.selection.length") == errors
    assert view.count() == ("1 error" if errors == 1 else f"{errors} errors")
    assert view.requests == [view.url]
    assert view.run("window.hacked") is None


def test_requests_are_detected_by_this_test(made, opened):
    """The recorder itself works: the page's own policy refuses what a script asks for, and says so."""
    view = opened(made("one", RECIPES["one"]).page)
    assert view.run("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in trouble for trouble in view.troubles)
    view.troubles.clear()


def test_hostile_names_are_text(made, opened):
    view = opened(made("hostile", RECIPES["hostile"]).page)
    names = view.run("[...document.querySelectorAll('#matrix tbody th bdi')].map(e => e.textContent)")
    # HTML itself drops NUL; all else arrives as written.
    assert names == [name.replace("\x00", "") for name in HOSTILE]
    # No name became an element: one script, the rest is data that has not been read yet.
    assert view.run("document.querySelectorAll('b').length") == 0
    assert view.run("[...document.scripts].filter(s => s.type !== 'application/json').length") == 1
    assert view.run("document.documentElement.scrollWidth <= innerWidth")


def test_report_without_errors(made, opened):
    view = opened(made("none", RECIPES["none"]).page)
    assert "All 50 images classified correctly" in view.page.inner_text("h1")
    assert "every prediction matches" in view.page.inner_text("#gallery-empty")
    assert "no error" in view.page.inner_text("#detail").lower()


def test_matrix_gallery_and_parquet_agree(made, opened):
    report = made("plain", RECIPES["plain"])
    view = opened(report.page)
    table = report.study.predictions
    actual, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    total = 0
    cells = view.run(WALK_MATRIX)
    assert len(cells) == 100
    for i, j, text, filtered, ids, cleared in cells:
        in_file = table.filter((actual == i) & (predicted == j))["id"].to_pylist()
        assert (text or "0") == str(len(in_file))
        if i != j and in_file:
            assert filtered == f"{len(in_file)} of 60 errors"
            assert sorted(ids) == sorted(in_file)
            assert cleared == "60 errors"
            total += len(ids)
    assert total == 60 == len(report.study.errors)


def test_flagged_maps_are_shown_and_found(made, opened):
    view = opened(made("odd", RECIPES["odd"]).page)
    stored = [row["flags"] for row in made("odd", RECIPES["odd"]).study.maps.to_pylist()
              if (row["layer"], row["target"]) == ("layer4[-1]", "predicted")]  # fmt: skip
    none = sum(not {"all-zero", "negative-only"}.isdisjoint(flags) for flags in stored)
    broken = sum("non-finite" in flags for flags in stored)
    assert none >= 16
    assert broken == 8
    for flag, expected in (("none", none), ("non-finite", broken), ("missing", 0)):
        view.page.select_option("#filters [name=flag]", flag)
        view.settle()
        assert view.run("whycam.selection.length") == expected
        if expected:
            assert view.page.locator("#detail .odd:visible").count() >= 1
            assert view.page.locator("#gallery .badge:visible").count() >= 1


def test_unexplained_errors_are_listed_and_counted(made, opened):
    view = opened(made("unexplained", RECIPES["unexplained"]).page)
    assert "Maps exist for 15 of 40 errors" in view.page.inner_text("#verdict")
    view.page.select_option("#filters [name=flag]", "missing")
    view.settle()
    assert view.count() == "25 of 40 errors"
    assert "not explained" in view.page.inner_text("#detail .odd >> nth=0")


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_overflows_the_page(width, made, opened):
    for name in ("plain", "hundred"):
        view = opened(made(name, RECIPES[name]).page, width=width)
        assert view.run("document.documentElement.scrollWidth") <= width


def test_the_link_holds_filters_and_display(made, opened):
    report = made("plain", RECIPES["plain"])
    first = opened(report.page)
    pair = first.run("() => { const {errors} = whycam; return [errors.label[7], errors.predicted[7]]; }")
    identifier = first.run("whycam.core.ids[7]")
    names = [quote(CIFAR10[c]) for c in pair]
    link = (
        f"actual={names[0]}&predicted={names[1]}&sort=loss&image={quote(identifier, safe='')}&method=hirescam"
        "&layer=layer3%5B-2%5D&target=difference&values=signed&overlay=off&opacity=40&grid=bilinear&theme=dark"
    )
    view = opened(report.page, hash=link)
    state = view.run("whycam.state")
    assert (state["actual"], state["predicted"], state["image"]) == (*pair, 7)
    assert (state["method"], state["layer"], state["target"], state["values"]) == (1, 1, "difference", "signed")
    assert (state["overlay"], state["opacity"], state["grid"]) == (False, 0.4, "bilinear")
    assert view.run("document.documentElement.dataset.theme") == "dark"
    assert view.run("document.querySelector('#filters [name=sort]').value") == "loss"
    # What the page writes itself leads to the same state.
    view.set(palette="inferno")
    view.page.wait_for_function("() => location.hash.includes('palette=inferno')")
    again = opened(report.page, hash=view.run("location.hash.slice(1)"))
    assert again.run("whycam.state") == view.run("whycam.state")


def test_malformed_links_are_harmless(made, opened):
    report = made("plain", RECIPES["plain"])
    view = opened(report.page, hash="actual=nobody&layer=x&sort=evil&opacity=NaN&image=none&__proto__=1&palette=jet")
    state = view.run("whycam.state")
    assert (state["actual"], state["layer"], state["sort"], state["opacity"]) == (-1, 2, "confident", 0.85)
    assert (state["palette"], view.count()) == ("viridis", "60 errors")


def test_a_changed_link_is_followed(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    view.run("() => { location.hash = 'layer=layer2%5B-2%5D&q=cat'; }")
    view.page.wait_for_function("() => whycam.state.layer === 0 && whycam.state.q === 'cat'")


def test_hostile_class_names_survive_the_link(made, opened):
    report = made("hostile", RECIPES["hostile"])
    view = opened(report.page)
    for c in (0, 2, 4, 9):
        view.set(actual=c)
        view.page.wait_for_timeout(200)
        again = opened(report.page, hash=view.run("location.hash.slice(1)"))
        assert again.run("whycam.state.actual") == c


def test_print_states_the_number_of_errors(made, opened):
    view = opened(made("hundred", RECIPES["hundred"]).page)
    view.page.emulate_media(media="print")
    view.run("window.dispatchEvent(new Event('beforeprint'))")
    assert "The first 60 of 300 selected errors" in view.page.inner_text("#print-note")
    assert view.page.locator("#print-note .tile").count() == 60
    assert not view.page.locator(".site").is_visible()


@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_print_is_dark_on_white(theme, made, opened):
    view = opened(made("plain", RECIPES["plain"]).page, hash=f"theme={theme}", color_scheme="dark")
    # All writing but what has a ground of its own: the matrix's cells and the badges on pictures.
    colors = """[...document.querySelectorAll('main *')].filter(e => e.checkVisibility()
        && !e.closest('[role=gridcell], .odd, .badge, .pinned')
        && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
      .map(e => getComputedStyle(e).color.match(/[0-9.]+/g).slice(0, 3).map(Number))"""
    paper = "getComputedStyle(document.body).backgroundColor"
    if theme != "light":
        assert np.median(view.run(colors)) > 150  # on the screen the writing is pale
    view.page.emulate_media(media="print", color_scheme="dark")
    view.run("window.dispatchEvent(new Event('beforeprint'))")
    writing = np.array(view.run(colors))
    assert len(writing) > 100
    # Relative luminance (WCAG 2): what is darker than this has a contrast of at least 4.5 to white.
    linear = np.where(writing <= 10, writing / 3294.6, ((writing / 255 + 0.055) / 1.055) ** 2.4)
    assert (1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)).min() >= 4.5
    assert view.run(paper) == "rgb(255, 255, 255)"
    assert view.run("getComputedStyle(document.querySelector('.fill')).printColorAdjust") == "exact"
