"""Everything can be reached by keyboard, and axe finds nothing, in both themes and in every state."""

from __future__ import annotations

from importlib.resources import files

import pytest
from test_report_opens import RECIPES


def focus_label(view) -> str:
    return view.run("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()")


def press(view, *keys) -> None:
    for key in keys:
        view.page.keyboard.press(key)
    view.settle()


def test_keyboard_walk_through(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    press(view, "Tab")
    assert focus_label(view) == "Skip to the errors"
    # Into the matrix with Tab alone, then to a cell with errors by arrows.
    for _ in range(40):
        press(view, "Tab")
        if view.run("document.activeElement.closest('#matrix') !== null"):
            break
    assert view.run("document.activeElement.closest('#matrix') !== null")
    press(view, "Home")
    cell = view.run("""() => { for (const row of document.querySelectorAll('#matrix tbody tr'))
      for (const cell of row.cells)
        if (/^c\\d/.test(cell.className)) return [row.rowIndex, cell.cellIndex, cell.textContent]; }""")
    press(view, *["ArrowDown"] * (cell[0] - 1), *["ArrowRight"] * cell[1], "Enter")
    assert view.count() == f"{cell[2]} of 60 errors"
    assert view.run("document.querySelector('#matrix [aria-selected=true]') === document.activeElement")
    press(view, "Enter")
    assert view.count() == "60 errors"
    # On to the gallery: one stop, then arrows.
    for _ in range(60):
        press(view, "Tab")
        if view.run("document.activeElement.closest('#gallery') !== null"):
            break
    columns = int(view.page.get_attribute("#gallery", "aria-colcount"))
    press(view, "Home", "ArrowRight", "ArrowDown", "ArrowLeft")
    assert view.run("whycam.state.image") == columns
    assert view.run("document.activeElement.error") == columns
    press(view, "End")
    assert view.run("whycam.state.image") == 59
    assert view.run("document.activeElement.error") == 59
    press(view, "ArrowRight", "PageUp", "Home")
    assert view.run("[whycam.state.image, document.activeElement.error]") == [0, 0]
    press(view, "Enter")
    assert view.run("document.activeElement.id") == "detail"


def test_single_keys(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    steps = [
        ("j", "image", 1), ("ArrowRight", "image", 2), ("k", "image", 1), ("ArrowLeft", "image", 0),
        ("1", "layer", 0), ("2", "layer", 1), ("3", "layer", 2), ("4", "layer", 2),
        ("t", "target", "true"), ("t", "target", "difference"), ("t", "target", "predicted"),
        ("m", "method", 1), ("m", "method", 0), ("h", "overlay", False), ("h", "overlay", True),
        ("s", "values", "signed"), ("s", "values", "positive"), ("c", "palette", "cividis"),
        ("i", "grid", "bilinear"), ("o", "opacityMode", "fixed"), ("p", "pin", 0),
    ]  # fmt: skip
    for key, name, value in steps:
        press(view, key)
        assert view.run("name => whycam.state[name]", name) == value, key
    press(view, "j")
    assert view.page.is_visible(".pinned-block")
    press(view, "/")
    view.page.keyboard.type("jkm?")
    assert view.run("[whycam.state.q, whycam.state.method]") == ["jkm?", 0]
    assert view.page.inner_text("#gallery-empty") == "No error passes these filters."
    view.run("document.activeElement.blur()")
    press(view, "x")
    assert view.count() == "60 errors"
    press(view, "?")
    assert view.page.is_visible("#help")
    press(view, "j", "Escape")
    assert not view.page.is_visible("#help")
    assert view.run("whycam.state.image") == 0


def test_single_keys_can_be_switched_off(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    view.page.click("#help-open")
    view.page.uncheck("#keys-on")
    press(view, "Escape", "j", "t")
    assert view.run("[whycam.state.image, whycam.state.target]") == [0, "predicted"]


def test_fast_keys_are_not_dropped(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    view.run("""() => { for (let i = 0; i < 45; i++)
      document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true})); }""")
    assert view.run("whycam.state.image") == 45
    view.settle()
    assert view.page.inner_text("#detail-title") == "Error 46 of 60"


def test_the_pinned_error_shares_the_scale(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    view.set(image=0, pin=5)
    shared = view.run("[0, 5].map(e => whycam.scalesOf([0, 5])(e, 2, 'true'))")
    alone = view.run("[0, 5].map(e => whycam.scalesOf([e])(e, 2, 'true'))")
    assert shared[0] == shared[1] == max(alone)
    words = view.run("[...document.querySelectorAll('.layer .legend')].map(e => e.textContent)")
    assert words[:3] == words[3:]


def test_text_alternatives_contain_the_numbers(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    labels = view.run("[...document.querySelectorAll('#detail .evidence canvas')].slice(0, 9).map(c => c.ariaLabel)")
    assert len(labels) == 9
    for label in labels:
        for said in ("cells", "scale", "shared by this layer’s pictures"):
            assert said in label
    assert all("raw range" in label and "of the mass is negative" in label for label in (labels[0], labels[7]))


STATES = {
    "fresh": {},
    "filtered": {"actual": 3},
    "nothing": {"q": "no such thing"},
    "pinned": {"pin": 4, "target": "difference"},
    "label-issues": {"label": "issue", "sort": "issue"},
    "cluster": {"cluster": 0},
    "signed": {"values": "signed", "grid": "bilinear", "scale": "map"},
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing(theme, width, made, opened):
    pytest.importorskip("playwright")
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    # A color on its way to another is not a state: without motion there is none.
    page = made("clustered", RECIPES["clustered"]).page
    view = opened(page, hash=f"theme={theme}", width=width, bypass_csp=True, reduced_motion="reduce")
    view.run(f"() => {{ {axe} }}")
    initial = view.run("structuredClone(whycam.state)")

    def findings() -> list[str]:
        found = view.run("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{rule['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
            for rule in found
            for node in rule["nodes"]
        ]

    # The narrow page holds the same elements: one state of them is enough.
    for name, patch in STATES.items() if width > 900 else [("fresh", {})]:
        view.set(**(initial | patch))
        assert findings() == [], name
    view.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert findings() == []
    view.page.keyboard.press("Escape")
    view.run("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    view.page.click("#help-open")
    assert findings() == []


def test_axe_detects_a_fault(made, opened):
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    view = opened(made("one", RECIPES["one"]).page, bypass_csp=True)
    view.run(f"() => {{ {axe} }}")
    view.run("document.querySelector('main').append(document.createElement('button'))")
    assert [rule["id"] for rule in view.run("axe.run()")["violations"]] == ["button-name"]


def test_reduced_motion_is_respected(made, opened):
    view = opened(made("plain", RECIPES["plain"]).page, reduced_motion="reduce")
    view.page.click("a[data-goto=methods]")
    top = view.run("document.getElementById('methods').getBoundingClientRect().top")
    assert 0 <= top < 200
    assert view.run("getComputedStyle(document.querySelector('#clear')).transitionDuration") == "0s"
