"""What the canvas shows is what the Parquet file holds, and what is exported is what the canvas shows."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from make_study import CIFAR10
from PIL import Image
from test_report_opens import RECIPES

from whycam.report.color import DIVERGING, lookup_table
from whycam.report.encoding import dequantize, quantize

CELLS = """([selector, columns, rows]) => {
  const canvas = document.querySelector(selector);
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const out = [];
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    const x = Math.floor((c + 0.5) * canvas.width / columns), y = Math.floor((r + 0.5) * canvas.height / rows);
    out.push([...data.subarray((y * canvas.width + x) * 4, (y * canvas.width + x) * 4 + 4)]);
  }
  return out;
}"""
KINDS = {"predicted": 1, "true": 2, "difference": 3}


def canvas_of(layer: int, kind: str, *, pinned: bool = False) -> str:
    block = "#detail .pinned-block .layers" if pinned else "#detail .layers:not(.pinned-block *)"
    return f"{block} .layer:nth-of-type({layer + 1}) .evidence.{kind} canvas"


def raw_of(study, identifier, method, layer, target):
    for row in study.maps.to_pylist():
        if (row["id"], row["method"], row["layer"], row["target"]) == (identifier, method, layer, target):
            return study.raw_map(row)
    raise AssertionError(identifier)


def seen(raw):
    """The value that a stored byte stands for."""
    flat = raw.reshape(1, -1).astype(np.float32)
    return dequantize(*quantize(flat))[0]


def expected_colors(shown, scale, palette, signed):
    t = np.asarray(shown, np.float64) / scale
    entry = np.floor((t.clip(-1, 1) + 1) * 127.5 + 0.5) if signed else np.floor(t.clip(0, 1) * 255 + 0.5)
    return lookup_table(DIVERGING if signed else palette)[entry.astype(int)]


def near(got, wanted):
    """Equal, but for values that lie on the edge between two entries of the palette: single and double differ there."""
    got, wanted = np.asarray(got, int)[:, :3], np.asarray(wanted, int)
    same = (got == wanted).all(axis=1)
    assert same.mean() >= 0.97
    assert np.abs(got - wanted).max() <= 8
    return True


@pytest.mark.parametrize("values", ["positive", "signed"])
@pytest.mark.parametrize("palette", ["viridis", "cividis", "inferno"])
def test_cells_have_the_palette_color_of_the_stored_byte(palette, values, made, opened):
    report = made("plain", RECIPES["plain"])
    view = opened(report.page)
    view.set(image=11, opacityMode="fixed", opacity=1, palette=palette, values=values)
    identifier = view.run("whycam.core.ids[11]")
    for number, (name, side) in enumerate((("layer2[-2]", 16), ("layer3[-2]", 8), ("layer4[-1]", 4))):
        maps = {t: seen(raw_of(report.study, identifier, "gradcam", name, t)) for t in ("predicted", "true")}
        if values == "positive":
            maps = {t: m.clip(0, None) for t, m in maps.items()}
        maps["difference"] = maps["predicted"] - maps["true"]
        scale = max(np.abs(m).max() for m in maps.values())
        for kind, shown in maps.items():
            got = view.run(CELLS, [canvas_of(number, kind), side, side])
            signed = values == "signed" or kind == "difference"
            assert near(got, expected_colors(shown, scale, palette, signed))


def test_a_cell_equals_the_look_up_of_its_byte_exactly(made, opened):
    """Every canvas cell is, to the bit, the page's own palette entry for the page's own byte."""
    view = opened(made("plain", RECIPES["plain"]).page)
    view.set(image=5, opacityMode="fixed", opacity=1, scale="study")
    wanted = view.run("""() => {
      const map = whycam.mapOf(5, 0, 2, 0), scale = whycam.studyScale(2), table = whycam.palettes.viridis;
      return [...map.values].map(v => { const i = whycam.entryOf(Math.max(0, v), scale, false) * 3;
        return [table[i], table[i + 1], table[i + 2], 255]; });
    }""")
    assert view.run(CELLS, [canvas_of(2, "predicted"), 4, 4]) == wanted


def test_opacity_by_value_blends_as_stated(made, opened):
    report = made("plain", RECIPES["plain"])
    view = opened(report.page)
    view.set(image=3, opacity=0.8, scale="map")
    identifier = view.run("whycam.core.ids[3]")
    shown = seen(raw_of(report.study, identifier, "gradcam", "layer2[-2]", "predicted")).clip(0, None)
    scale = shown.max()
    pixels = np.asarray(Image.open(io.BytesIO(report.study.images[identifier])).convert("RGB"), float)
    # At the center of a cell of 2 × 2 pixels lies the pixel below and right of it.
    below = pixels[1::2, 1::2].reshape(-1, 3)
    alpha = (0.8 * shown / scale)[:, None]
    wanted = expected_colors(shown, scale, "viridis", False) * alpha + below * (1 - alpha)
    got = np.asarray(view.run(CELLS, [canvas_of(0, "predicted"), 16, 16]), float)[:, :3]
    assert np.abs(got - wanted).max() <= 3


def test_images_are_lossless(made, opened):
    report = made("plain", RECIPES["plain"])
    view = opened(report.page)
    view.set(overlay=False)
    for number in (0, 17, 59):
        view.set(image=number)
        got = np.asarray(view.run(CELLS, ["#detail canvas.image", 32, 32]))[:, :3]
        png = report.study.images[view.run("n => whycam.core.ids[n]", number)]
        assert (got.reshape(32, 32, 3) == np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))).all()
        hidden = np.asarray(view.run(CELLS, [canvas_of(2, "predicted"), 32, 32]))[:, :3]
        assert (hidden == got).all()


def test_interpolation_is_bilinear_with_half_pixel_centers(made, opened):
    import torch
    from torch.nn import functional as F

    report = made("plain", RECIPES["plain"])
    view = opened(report.page)
    view.set(image=2, grid="bilinear", opacityMode="fixed", opacity=1, scale="map")
    raw = seen(raw_of(report.study, view.run("whycam.core.ids[2]"), "gradcam", "layer4[-1]", "predicted"))
    shown = torch.from_numpy(raw.clip(0, None).reshape(1, 1, 4, 4))
    smooth = F.interpolate(shown, size=(192, 192), mode="bilinear", align_corners=False)[0, 0].numpy().ravel()
    got = view.run(CELLS, [canvas_of(2, "predicted"), 192, 192])
    assert near(got, expected_colors(smooth, raw.max(), "viridis", False))
    assert "bilinear interpolation" in view.page.inner_text("#detail .layer >> nth=2")


def test_cells_that_are_not_finite_are_gray(made, opened):
    view = opened(made("odd", RECIPES["odd"]).page)
    view.page.select_option("#filters [name=flag]", "non-finite")
    view.set(opacityMode="fixed", opacity=1)
    edge = """() => { const c = document.querySelector('.evidence.predicted canvas');
      const w = c.width / 16; return [...c.getContext('2d').getImageData(w / 2, 2, 1, 1).data]; }"""
    assert view.run(edge) == [128, 128, 128, 255]
    label = view.page.get_attribute(".evidence.predicted canvas >> nth=0", "aria-label")
    assert "not finite" in label


def exported(view, form) -> Path:
    with view.page.expect_download() as download:
        view.page.click("#export-menu summary")
        view.page.click(f"[data-export={form}]")
    assert download.value.suggested_filename.endswith(f".{form}")
    return Path(download.value.path())


@pytest.mark.parametrize("pin", [-1, 40])
def test_the_png_export_equals_the_view(pin, made, opened):
    view = opened(made("plain", RECIPES["plain"]).page)
    view.set(image=9, pin=pin, palette="inferno", opacity=0.6, values="signed")
    pixels = np.asarray(Image.open(exported(view, "png")).convert("RGB"))
    pictures = [
        item
        for item in view.run(
            "whycam.sceneOf().items.map(({x, y, side, tall, look}) => ({x, y, side, tall, overlay: look?.overlay}))"
        )
        if item.get("side")
    ]
    overlays = [item for item in pictures if item["overlay"]]
    shown = 1 if pin < 0 else 2
    assert (len(pictures), len(overlays)) == (12 * shown, 9 * shown)
    for number, item in enumerate(overlays):
        layer, kind = number % 9 // 3, list(KINDS)[number % 3]
        canvas = canvas_of(layer, kind, pinned=number >= 9)
        got = np.asarray(view.run(CELLS, [canvas, 32, 32]))[:, :3].reshape(32, 32, 3)
        step = item["side"] * 2 / 32
        at = (np.arange(32) + 0.5) * step
        rows, columns = (item["y"] * 2 + at).astype(int), (item["x"] * 2 + at).astype(int)
        assert np.abs(pixels[np.ix_(rows, columns)].astype(int) - got).max() == 0


SVG = {"s": "http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("pin", [-1, 7])
def test_the_svg_export_holds_the_cells_as_drawn(pin, made, opened):
    view = opened(made("hostile", RECIPES["hostile"]).page)
    view.set(image=4, pin=pin, opacityMode="fixed", opacity=1)
    root = ET.parse(exported(view, "svg")).getroot()
    groups = root.findall("s:g", SVG)
    assert len(groups) == (9 if pin < 0 else 18)
    for number, group in enumerate(groups):
        layer, kind = number % 9 // 3, list(KINDS)[number % 3]
        side = (16, 8, 4)[layer]
        fills = [[int(v) for v in rect.get("fill")[4:-1].split(",")] for rect in group.findall("s:rect", SVG)]
        got = view.run(CELLS, [canvas_of(layer, kind, pinned=number >= 9), side, side])
        assert fills == [cell[:3] for cell in got]
    texts = [text.text for text in root.findall("s:text", SVG)]
    assert sum(text.startswith("Pinned: predicted") for text in texts) == (0 if pin < 0 else 1)
    assert all(float(item.get("y")) < float(root.get("height")) for item in root.iter() if item.get("y"))


def test_the_export_has_the_probabilities(made, opened):
    report = made("hundred", RECIPES["hundred"])
    view = opened(report.page)
    view.set(image=2)
    root = ET.parse(exported(view, "svg")).getroot()
    rects = root.findall("s:rect", SVG)[1:]  # the first is the paper
    bars = [rect for rect in rects if rect.get("fill") != "#efede7"]
    identifier = view.run("whycam.core.ids[2]")
    (row,) = [row for row in report.study.errors.to_pylist() if row["id"] == identifier]
    best = np.argsort(-np.asarray(row["probabilities"]), kind="stable")[:8].tolist()
    classes = best if row["label"] in best else [*best, row["label"]]
    widths = [float(bar.get("width")) for bar in bars]
    assert widths == pytest.approx([max(1, 384 * row["probabilities"][c]) for c in classes], abs=1e-3)
    fills = [bar.get("fill") for bar in bars]
    assert fills[classes.index(row["predicted"])] == "#a63c08"
    assert fills[classes.index(row["label"])] == "#08665c"
    texts = [text.text for text in root.findall("s:text", SVG)]
    for line in view.page.locator("#detail .bars .p").all_inner_texts():
        assert line in texts
    assert view.page.inner_text("#detail .thoughts .note") in texts


def test_the_csv_export_is_the_selection(made, opened):
    report = made("plain", RECIPES["plain"])
    view = opened(report.page)
    view.set(sort="margin", predicted=3)
    with exported(view, "csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = [row for row in report.study.errors.to_pylist() if row["predicted"] == 3]
    table.sort(key=lambda row: -row["margin"])
    assert [row["id"] for row in rows] == [row["id"] for row in table]
    for row, stored in zip(rows, table, strict=True):
        assert (row["actual"], row["predicted"]) == (CIFAR10[stored["label"]], CIFAR10[3])
        for name in ("confidence", "margin", "loss"):
            assert np.float32(row[name]) == np.float32(stored[name])
    suspicion = {row["id"]: row["score"] for row in report.study.label_issues.to_pylist()}
    assert all(np.float32(row["label_suspicion"]) == np.float32(suspicion[row["id"]]) for row in rows)


def test_the_csv_export_quotes_hostile_names(made, opened):
    report = made("hostile", RECIPES["hostile"])
    view = opened(report.page)
    rows = list(csv.DictReader(io.StringIO(view.run("whycam.selectionCsv()"), newline="")))
    by_id = {row["id"]: row for row in report.study.errors.to_pylist()}
    classes = report.study.classes
    assert {row["id"]: row["actual"] for row in rows} == {name: classes[row["label"]] for name, row in by_id.items()}
