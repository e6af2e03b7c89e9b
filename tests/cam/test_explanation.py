"""The result: chosen by name, frozen, saved and read back, drawn, and made by something that can be pickled."""

from __future__ import annotations

import base64
import dataclasses
import io
import pickle
from html.parser import HTMLParser

import pytest
import torch

import whycam
from whycam import WhycamError


@pytest.fixture(scope="module")
def explained(model, batch):
    targets = {"predicted": None, "cat": 3}
    return whycam.explain(model, batch, ["layer3[-2]", "layer4[-1]"], ["gradcam", "hirescam"], targets)


def test_what_it_holds(explained, batch):
    assert explained.methods == ("gradcam", "hirescam")
    assert explained.layers == ("layer3[-2]", "layer4[-1]")
    assert explained.targets == ("predicted", "cat")
    assert explained.channels == {"layer3[-2]": 256, "layer4[-1]": 512}
    assert explained.map("Grad-CAM", "layer3[-2]", "cat").shape == (8, 8, 8)
    assert explained.heatmap("gradcam", "layer4[-1]", "cat").shape == (8, 32, 32)
    torch.testing.assert_close(explained.scores["cat"], explained.logits[:, 3])
    torch.testing.assert_close(explained.scores["predicted"], explained.logits.max(1).values)
    assert explained.predicted.tolist() == explained.logits.argmax(1).tolist()
    low, high = explained.range("gradcam", "layer3[-2]", "cat")
    assert bool((low <= high).all())
    assert len(explained.flags["gradcam", "layer4[-1]", "cat"]) == 8
    assert repr(explained).startswith("Explanation(8 images; methods: gradcam, hirescam")


def test_is_frozen(explained):
    with pytest.raises(dataclasses.FrozenInstanceError):
        explained.logits = None


def test_ambiguous_and_unknown_names(explained):
    with pytest.raises(WhycamError, match="several methods; name one of gradcam, hirescam"):
        explained.map()
    with pytest.raises(WhycamError, match=r"no layer 'layer3' \(did you mean layer3\[-2\]"):
        explained.map("gradcam", "layer3")


def test_saved_and_read_back(explained, tmp_path):
    path = explained.save(tmp_path / "why.safetensors")
    again = whycam.load_explanation(path)
    assert list(again.maps) == list(explained.maps)
    for key, raw in explained.maps.items():
        assert torch.equal(again.maps[key], raw)
    assert torch.equal(again.inputs, explained.inputs)
    assert torch.equal(again.logits, explained.logits)
    assert again.channels == explained.channels
    assert [p.name for p in tmp_path.iterdir()] == ["why.safetensors"]


def test_files_that_are_no_explanation(tmp_path, explained):
    (tmp_path / "cut.safetensors").write_bytes(explained.save(tmp_path / "a.safetensors").read_bytes()[:1000])
    for name in ("missing.safetensors", "cut.safetensors"):
        with pytest.raises(WhycamError, match=f"{name}: not an explanation that whycam saved"):
            whycam.load_explanation(tmp_path / name)
    with pytest.raises(WhycamError, match="cannot be written"):
        explained.save(tmp_path / "no" / "such" / "folder.safetensors")


def test_figure(explained):
    figure = explained.plot(2)
    panels = figure.axes[: 4 * 3]
    titles = [axes.get_title() for axes in panels]
    assert titles[1].startswith("layer3[-2] (8×8, full = ")
    assert len(figure.axes) == 4 * 3 + 4 * 2  # a colour bar beside every map
    with pytest.raises(WhycamError, match="image 8 does not exist; this explanation has 8"):
        explained.plot(8)


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_figure_for_a_paper(form, start, explained):
    buffer = io.BytesIO()
    explained.plot(2, signed=form == "svg").savefig(buffer, format=form)
    assert buffer.getvalue().startswith(start)


def test_figure_shows_the_native_cells(explained):
    """Each cell has its own colour, targets share the scale of their layer, and the bar says what it is."""
    figure = explained.plot(2)
    meshes = [next(iter(panel.collections)) for panel in figure.axes[: 4 * 3] if panel.collections]
    keys = [(m, layer, t) for m in explained.methods for t in explained.targets for layer in explained.layers]
    assert len(meshes) == len(keys)
    for mesh, (method, layer, target) in zip(meshes, keys, strict=True):
        raw = explained.map(method, layer, target)[2]
        assert mesh.get_array().shape == raw.shape
        torch.testing.assert_close(torch.as_tensor(mesh.get_array().filled(0.0)), raw.relu())
        tops = [float(explained.map(method, layer, other)[2].max()) for other in explained.targets]
        assert mesh.get_clim() == (0, pytest.approx(max(tops)))


def test_figure_of_cells_that_are_not_finite(explained):
    broken = {key: raw.clone() for key, raw in explained.maps.items()}
    broken["gradcam", "layer4[-1]", "cat"][2, 0, 0] = torch.nan
    figure = dataclasses.replace(explained, maps=broken).plot(2)
    (mesh,) = figure.axes[5].collections
    assert mesh.get_array().mask.sum() == 1
    assert "non-finite" in figure.axes[5].get_title()


class Pictures(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def test_notebook_shows_figures_with_text_alternatives(explained):
    html = explained._repr_html_()
    parser = Pictures()
    parser.feed(html)
    assert len(parser.found) == 3
    assert "5 more images: plot(index)" in html
    for index, picture in enumerate(parser.found):
        assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
        raw = explained.map("gradcam", "layer4[-1]", "cat")[index]
        assert f"gradcam at layer4[-1] for cat: 4 by 4 cells, raw range {float(raw.min()):.3g} to" in picture["alt"]
    assert "http" not in html


def test_explainer_survives_pickling(model, batch):
    explainer = whycam.Explainer(model, ["layer3[-2]"], ["hirescam"], targets=3)
    again = pickle.loads(pickle.dumps(explainer))
    torch.testing.assert_close(again(batch).map(), explainer(batch).map())
