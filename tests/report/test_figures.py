"""Figures: their files and contents; odd names and maps do not break them (warnings are errors)."""

from __future__ import annotations

import numpy as np
import pytest
from make_study import HOSTILE, Recipe, make_study
from PIL import Image

from whycam.errors import WhycamError
from whycam.report.color import lookup_table
from whycam.report.figures import draw_layer, printable, write_figures
from whycam.report.payload import Payload
from whycam.study.folder import Study


def odd_map(rng, error, method, layer, target, side):
    return [np.zeros, lambda s, d: -np.ones(s, d), lambda s, d: np.full(s, np.nan, d)][error % 3](
        (side, side), np.float32
    )


def test_one_gallery_per_layer_and_method(tmp_path):
    study = Study.load(make_study(tmp_path / "s", Recipe(n=120, errors=25, methods=("gradcam", "hirescam"))))
    written = write_figures(Payload(study), tmp_path / "figures")
    names = {path.name for path in written}
    assert names == {"confusion.png", "misclassified.png"} | {
        f"{method}-{layer}.png" for method in ("gradcam", "hirescam") for layer in ("layer2.0", "layer3.0", "layer4.1")
    }
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    for path in written:
        with Image.open(path) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(10**7)) > 20


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(n=60, errors=30, classes=HOSTILE),
        Recipe(n=60, errors=7, make_map=odd_map),
        Recipe(n=40, errors=1),
        Recipe(n=40, errors=10, unexplained=10),
        Recipe(n=400, errors=60, classes=tuple(f"class {i}" for i in range(100))),
    ],
    ids=["hostile", "odd maps", "one error", "no maps", "hundred classes"],
)
def test_odd_names_and_maps_do_not_break_figures(recipe, tmp_path):
    study = Study.load(make_study(tmp_path / "s", recipe))
    assert len(write_figures(Payload(study), tmp_path / "figures")) == 5


def test_without_errors_only_the_matrix_is_drawn(tmp_path):
    study = Study.load(make_study(tmp_path / "s", Recipe(n=40, errors=0)))
    assert [path.name for path in write_figures(Payload(study), tmp_path / "figures")] == ["confusion.png"]


def test_maps_that_cannot_be_shown_are_labeled(tmp_path):
    study = Study.load(make_study(tmp_path / "s", Recipe(n=60, errors=6, make_map=odd_map)))
    payload = Payload(study)
    figure = draw_layer(payload, "gradcam", payload.layers[2])
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts.count("no positive evidence") + texts.count("not finite") == 12
    assert "not finite" in texts


def test_cells_are_native_and_on_one_scale(tmp_path):
    """The drawn colors of a gallery are the look-up of value / scale, cell by cell."""
    study = Study.load(make_study(tmp_path / "s", Recipe(n=60, errors=6)))
    payload = Payload(study)
    figure = draw_layer(payload, "gradcam", payload.layers[2])
    drawn = [ax.images[1].get_array() for ax in figure.axes if len(ax.images) == 2]
    assert len(drawn) == 12
    assert all(array.shape == (4, 4, 4) for array in drawn)
    rows = {(r["id"], r["target"]): study.raw_map(r) for r in study.maps.to_pylist() if r["layer"] == "layer4[-1]"}
    cells = np.concatenate([raw.ravel() for raw in rows.values()])
    scale = np.quantile(cells, 0.99)
    for place, identifier in enumerate(payload.ids):
        for offset, target in enumerate(("predicted", "true")):
            wanted = lookup_table("viridis")[np.rint((rows[identifier, target] / scale).clip(0, 1) * 255).astype(int)]
            assert np.abs(drawn[2 * place + offset][..., :3].astype(int) - wanted).max() <= 3
    assert f"0 to {scale:.3g}" in figure.texts[1].get_text()


def test_printable_names():
    assert printable("cat", 10) == "cat"
    assert printable("\u202e\u2066evil\x00\n", 10) == "evil"
    assert printable("🦊 fox", 10) == "\ufffd fox"
    assert printable("x" * 300, 16) == "x" * 15 + "…"


def test_an_unwritable_folder_is_reported(tmp_path):
    study = Study.load(make_study(tmp_path / "s", Recipe(n=40, errors=3)))
    (tmp_path / "file").write_text("")
    with pytest.raises(WhycamError, match=r"file: cannot be written"):
        write_figures(Payload(study), tmp_path / "file")
