"""The live page in a real browser against a real server: give an image in every way, choose, look, save."""

from __future__ import annotations

import base64
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import View, hear

sys.path.insert(0, str(Path(__file__).parent.parent / "app"))
from served import Served, photo_bytes

CELL = """([layer, kind, columns, x, y]) => {
  const row = document.querySelectorAll('#evidence .layer:not([hidden])')[layer];
  const canvas = row.querySelector(`.evidence.${kind} canvas`);
  const side = canvas.width / columns;
  return [...canvas.getContext('2d').getImageData((x + 0.5) * side, (y + 0.5) * side, 1, 1).data];
}"""
GIVE = """([kind, base64, name]) => {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: 'image/png'}));
  const event = kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
    : new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
  document.body.dispatchEvent(event);
}"""


@pytest.fixture(scope="session")
def server():
    served = Served(["-m", "whycam", "serve", "cifar10-resnet18", "--port", "0", "--json"])
    yield served
    status, _, err = served.stop()
    assert (status, err) == (0, "")


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "cat & 'dog' <b>.png"
    path.write_bytes(photo_bytes())
    return path


@pytest.fixture
def live(browser, server):
    """Open the page; at the end it has asked this server alone and has complained about nothing."""
    contexts, views = [], []

    def opener(width=1440, hash="", **options) -> View:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        view = View(page, server.url, [], [])
        page.on("request", lambda request: view.requests.append(request.url))
        page.on("console", lambda message: hear(view, message.text))
        page.on("pageerror", lambda error: view.troubles.append(f"error: {error}"))
        page.goto(server.url + hash)
        page.wait_for_selector("html[data-ready]")
        views.append(view)
        return view

    yield opener
    for context in contexts:
        context.close()
    for view in views:
        assert view.troubles == []
        assert [url for url in view.requests if not url.startswith((server.url, "data:", "blob:"))] == []


def answered(view: View, times: int = 1) -> None:
    """Wait until the server has been asked that often and the page shows the last answer."""
    view.page.wait_for_function(
        "n => performance.getEntriesByType('resource').filter(e => e.name.includes('/explain')).length >= n"
        " && !document.body.classList.contains('busy')",
        arg=times,
    )
    view.settle()


def shown(view: View) -> list[str]:
    return view.run(
        "[...document.querySelectorAll('#evidence .layer:not([hidden]) .layer-name')]"
        ".map(e => e.lastChild.textContent.trim())"
    )


def test_an_image_from_the_disk(live, photo):
    view = live()
    assert view.page.is_visible("#nothing")
    view.page.set_input_files("#file", photo)
    answered(view)
    assert not view.page.is_visible("#nothing")
    assert view.page.inner_text("#verdict-line").startswith("cat, ")
    assert "160 × 120" in view.page.inner_text("#seen-note")
    assert shown(view) == ["layer2[-2]", "layer3[-2]", "layer4[-1]"]
    assert "Answer in" in view.page.inner_text("#status")
    assert view.page.locator("#bars li").count() == 8
    label = view.page.get_attribute("#evidence .layer:last-child .evidence.predicted canvas", "aria-label")
    for said in ("Grad-CAM at layer4[-1]", "4 by 4 cells", "raw range", "of the mass is negative", "scale 0 to"):
        assert said in label
    captions = view.page.locator("#evidence .layer:not([hidden]) .evidence.predicted figcaption").all_inner_texts()
    assert len(captions) == 3
    assert all("…" in caption and "negative" in caption for caption in captions)


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_dropped_or_pasted(kind, live, photo):
    view = live()
    view.run(GIVE, [kind, base64.b64encode(photo.read_bytes()).decode(), photo.name])
    answered(view)
    assert view.page.inner_text("#verdict-line").startswith("cat, ")
    assert view.run("whycam.core.ids[0]") == photo.name


def test_an_example(live):
    view = live()
    view.page.click("#samples button >> nth=8")
    answered(view)
    assert "as the network sees it" in view.page.inner_text("#seen-note")
    assert view.run("whycam.answered.file.width") == 32


def test_layers_method_and_class_are_chosen(live, photo):
    view = live()
    view.page.set_input_files("#file", photo)
    answered(view)
    view.page.uncheck("[name=wanted][value='layer2[-2]']")
    answered(view, 2)
    assert shown(view) == ["layer3[-2]", "layer4[-1]"]
    view.page.select_option("[name=method]", "hirescam")
    answered(view, 3)
    label = view.page.locator("#evidence .layer:not([hidden]) .evidence.true canvas >> nth=0").get_attribute(
        "aria-label"
    )
    assert label.startswith("HiResCAM at layer3[-2], evidence for chosen")
    view.page.select_option("[name=chosen]", "9")
    answered(view, 4)
    assert "truck" in view.page.inner_text(".kind.true")
    view.page.uncheck("[name=wanted][value='layer3[-2]']")
    answered(view, 5)
    view.page.uncheck("[name=wanted][value='layer4[-1]']")
    assert view.page.inner_text("#trouble") == "Choose at least one layer."


def drawn(view: View) -> list[int]:
    """How many colors the maps of each row have, with the image hidden beneath them."""
    view.set(opacityMode="fixed", opacity=1)
    script = """[...document.querySelectorAll('#evidence .evidence.predicted canvas')].map(canvas => {
      const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      return new Set(new Uint32Array(data.buffer)).size; })"""
    return view.run(script)


def test_methods_that_look_at_no_single_layer_are_drawn_too(live, photo):
    """One map of all layers, one of the image alone, and maps finer than their layers; then ordinary ones again."""
    view = live(width=390)
    view.page.set_input_files("#file", photo)
    answered(view)
    for layer in range(8):
        if layer not in (2, 4, 7):
            view.page.keyboard.press(str(layer + 1))
    view.page.select_option("[name=method]", "refinecam")
    view.page.wait_for_function("() => whycam.answered.method.name === 'refinecam'")
    view.settle()
    (name,) = shown(view)
    assert name.count("+") == 7
    assert "all chosen layers together" in view.page.inner_text("#layers-note")
    assert "32 × 32, native" in view.page.inner_text("#evidence .native")
    assert view.page.locator("#evidence button.layer-name").count() == 0
    assert min(drawn(view)) > 2
    assert view.run("document.documentElement.scrollWidth") <= 390
    view.page.select_option("[name=method]", "sobel")
    view.page.wait_for_function("() => whycam.answered.method.name === 'sobel'")
    view.settle()
    assert shown(view) == ["input"]
    assert view.page.is_disabled("[name=wanted][value='layer4[-1]']")
    assert min(drawn(view)) > 20
    asked = len(view.requests)
    view.page.keyboard.press("1")
    assert len(view.requests) == asked
    for method in ("guidedgradcam", "gradcam"):
        view.page.select_option("[name=method]", method)
        view.page.wait_for_function("name => whycam.answered.method.name === name", arg=method)
        view.settle()
        assert len(shown(view)) == 8
        assert view.run("whycam.core.layers[7].height") == (32 if method == "guidedgradcam" else 4)
        assert min(drawn(view)) > 2
    assert view.page.is_enabled("[name=wanted][value='layer4[-1]']")
    view.page.click("#evidence button.layer-name >> nth=7")
    view.page.wait_for_function("() => whycam.core.layers.length === 7")


def test_colors_are_the_palettes_entries_for_the_bytes(live, photo):
    view = live(hash="#opacityMode=fixed&opacity=100")
    view.page.set_input_files("#file", photo)
    answered(view)
    for palette in ("viridis", "inferno"):
        view.set(palette=palette)
        wanted = view.run(
            """palette => { const map = whycam.evidenceOf(0, 0, 2, 'predicted', false);
          const scale = whycam.scalesOf([0])(0, 2, 'predicted'), table = whycam.palettes[palette];
          return [...map.values].map(v => { const i = whycam.entryOf(v, scale, false) * 3;
            return [table[i], table[i + 1], table[i + 2], 255]; }); }""",
            palette,
        )
        seen = [view.run(CELL, [2, "predicted", 4, x, y]) for y in range(4) for x in range(4)]
        assert seen == wanted
        assert len({tuple(color) for color in seen}) > 2


def test_display_needs_no_server(live, photo):
    view = live()
    view.page.set_input_files("#file", photo)
    answered(view)
    asked = len(view.requests)
    for key in "hscio":
        view.page.keyboard.press(key)
        view.settle()
    state = view.run("whycam.state")
    assert (state["overlay"], state["values"], state["palette"]) == (False, "signed", "cividis")
    assert (state["grid"], state["opacityMode"]) == ("bilinear", "fixed")
    view.page.keyboard.press("h")
    view.settle()
    assert "bilinear interpolation" in view.page.locator("#evidence .layer:not([hidden]) .native >> nth=0").inner_text()
    assert len(view.requests) == asked


def test_bad_files_get_the_servers_sentence(live, tmp_path, photo):
    view = live()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<script>window.hacked = 1</script>")
    view.page.set_input_files("#file", bad)
    view.page.wait_for_selector("#trouble:not([hidden])")
    assert "is not an image whycam reads" in view.page.inner_text("#trouble")
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * (8 * 2**20 + 1))
    view.page.set_input_files("#file", large)
    view.page.wait_for_function("() => document.getElementById('trouble').textContent.includes('larger than 8 MiB')")
    view.page.set_input_files("#file", photo)
    view.page.wait_for_selector("#thoughts:not([hidden])")
    assert not view.page.is_visible("#trouble")
    # The browser itself reports an answer of 400 on its console.
    view.troubles[:] = [trouble for trouble in view.troubles if "400 (Bad Request)" not in trouble]


def test_keyboard_alone(live, photo):
    view = live()
    view.page.keyboard.press("Tab")
    assert view.run("document.activeElement.textContent") == "Skip to the maps"
    for _ in range(12):
        view.page.keyboard.press("Tab")
        if view.run("document.activeElement.closest('#samples') !== null"):
            break
    view.page.keyboard.press("Enter")
    answered(view)
    view.page.keyboard.press("8")
    answered(view, 2)
    assert shown(view) == ["layer2[-2]", "layer3[-2]"]
    view.page.keyboard.press("m")
    answered(view, 3)
    assert view.run("whycam.answered.method.name") == view.run("whycam.core.offered[1].name")
    view.page.keyboard.press("?")
    assert view.page.is_visible("#help")
    view.page.keyboard.press("Escape")
    view.page.wait_for_selector("#help", state="hidden")
    view.page.keyboard.press("u")
    assert view.run("document.activeElement.id") == "file"
    # From here on it is the browser's own file input; without a display it opens no dialog for a key.
    view.page.set_input_files("input[type=file]:focus", photo)
    answered(view, 4)
    assert view.run("whycam.core.ids[0]") == photo.name


@pytest.mark.parametrize("form", ["png", "svg"])
def test_export(form, live, photo, tmp_path):
    view = live()
    view.page.set_input_files("#file", photo)
    answered(view)
    view.page.click("#export-menu summary")
    with view.page.expect_download() as download:
        view.page.click(f"[data-export={form}]")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    if form == "png":
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    else:
        text = path.read_text(encoding="utf-8")
        assert "layer4[-1]" in text
        assert "chosen" in text
        assert "layer1" not in text


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing(theme, width, live, photo):
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    view = live(width=width, hash=f"#theme={theme}", bypass_csp=True, reduced_motion="reduce")
    view.run(f"() => {{ {axe} }}")

    def findings() -> list[str]:
        found = view.run("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [f"{rule['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
                for rule in found for node in rule["nodes"]]  # fmt: skip

    assert findings() == []
    view.page.set_input_files("#file", photo)
    answered(view)
    view.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    view.settle()
    assert findings() == []
    assert view.run("document.documentElement.scrollWidth") <= width
    assert view.run("document.documentElement.dataset.theme") == theme


def test_no_other_site_can_use_it(browser, server):
    """A page of another origin neither reads the page nor gets an explanation."""
    other = Served(["-m", "whycam", "serve", "cifar10-resnet18", "--port", "0", "--json"])
    try:
        context = browser.new_context(bypass_csp=True)
        page = context.new_page()
        page.goto(other.url)
        script = """async url => { try { const r = await fetch(url, {method: 'POST', body: 'x'}); return r.status; }
          catch (e) { return 'refused'; } }"""
        assert page.evaluate(script, f"{server.url}explain?layer=layer4[-1]") == "refused"
        assert page.evaluate("async url => { try { await fetch(url); return 'read'; } catch { return 'refused'; } }",
                             server.url) == "refused"  # fmt: skip
        context.close()
    finally:
        other.stop()
