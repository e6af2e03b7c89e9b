"""`Explanation`: access by name, saving and loading, figures and HTML; and pickling of the `Explainer`."""

from __future__ import annotations

import base64
import dataclasses
import io
import pickle
import re
from html import escape
from html.parser import HTMLParser

import pytest
import torch
from networks import InPlace

import whycam
from whycam import WhycamError
from whycam.cam.display import describe_maps


@pytest.fixture(scope="module")
def explained(model, batch):
    targets = {"predicted": None, "cat": 3}
    return whycam.explain(model, batch, ["layer3[-2]", "layer4[-1]"], ["gradcam", "hirescam"], targets)


def test_attributes(explained, batch):
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


def test_explanation_is_frozen(explained):
    with pytest.raises(dataclasses.FrozenInstanceError):
        explained.logits = None


def test_ambiguous_and_unknown_names_are_refused(explained):
    with pytest.raises(WhycamError, match="several methods; name one of gradcam, hirescam"):
        explained.map()
    with pytest.raises(WhycamError, match=r"no layer 'layer3' \(did you mean layer3\[-2\]"):
        explained.map("gradcam", "layer3")


def test_save_and_load(explained, tmp_path):
    path = explained.save(tmp_path / "why.safetensors")
    again = whycam.load_explanation(path)
    assert list(again.maps) == list(explained.maps)
    for key, raw in explained.maps.items():
        assert torch.equal(again.maps[key], raw)
    assert torch.equal(again.inputs, explained.inputs)
    assert torch.equal(again.logits, explained.logits)
    assert again.channels == explained.channels
    assert [p.name for p in tmp_path.iterdir()] == ["why.safetensors"]


def test_load_refuses_other_files(tmp_path, explained):
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
    assert len(figure.axes) == 4 * 3 + 4 * 2  # a color bar beside every map
    with pytest.raises(WhycamError, match="image 8 does not exist; this explanation has 8"):
        explained.plot(8)


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_figure_file_formats(form, start, explained):
    buffer = io.BytesIO()
    explained.plot(2, signed=form == "svg").savefig(buffer, format=form)
    assert buffer.getvalue().startswith(start)


def test_figure_shows_the_native_cells(explained):
    """The mesh has the map's native cells, and all targets of a layer share one scale."""
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


def test_figure_with_non_finite_cells(explained):
    broken = {key: raw.clone() for key, raw in explained.maps.items()}
    broken["gradcam", "layer4[-1]", "cat"][2, 0, 0] = torch.nan
    figure = dataclasses.replace(explained, maps=broken).plot(2)
    (mesh,) = figure.axes[5].collections
    assert mesh.get_array().mask.sum() == 1
    assert "non-finite" in figure.axes[5].get_title()


@pytest.fixture(scope="module")
def mixed(model, batch):
    """One method with a map of each layer, one with a map of both together, one with a map of the image alone."""
    layers = ["layer3[-2]", "layer4[-1]"]
    return whycam.explain(model, batch[:2], layers, ["gradcam", "refinecam", "sobel"], {"predicted": None, "cat": 3})


def test_figure_of_methods_with_different_layers(mixed):
    """There is exactly one panel for each map, and its title begins with the layer's name."""
    figure = mixed.plot(1, signed=True)
    panels = [axes for axes in figure.axes if axes.images]
    images = [panel for panel in panels if not panel.collections]
    drawn = [panel for panel in panels if panel.collections]
    rows = [(method, target) for method in mixed.methods for target in mixed.targets]
    assert [panel.get_ylabel() for panel in images] == [method for method, _ in rows]
    keys = [key for row in rows for key in mixed.maps if (key[0], key[2]) == row]
    assert len(drawn) == len(keys) == len(mixed.maps)
    assert len(figure.axes) == len(panels) + len(drawn)  # the rest are color bars
    for panel, key in zip(drawn, keys, strict=True):
        assert panel.get_title().replace("\n", "").startswith(key[1])
        drawn_values = torch.as_tensor(panel.collections[0].get_array().filled(0.0))
        torch.testing.assert_close(drawn_values, mixed.maps[key][1])
        others = [
            panel.collections[0].get_clim() for panel, other in zip(drawn, keys, strict=True) if other[:2] == key[:2]
        ]
        assert len(others) == 2
        assert len(set(others)) == 1
    assert "refinecam at layer3[-2]+layer4[-1] for cat: 8 by 8 cells" in describe_maps(mixed, 1)


def test_long_titles_break_between_layer_names(mixed):
    name = "+".join(f"layer{stage}[-{block}]" for stage in range(1, 5) for block in (2, 1))
    raw = mixed.map("gradcam", "layer3[-2]", "cat")
    explained = dataclasses.replace(mixed, maps={("refinecam", name, "cat"): raw})
    lines = explained.plot().axes[1].get_title().splitlines()
    assert "".join(lines).startswith(name)
    assert max(map(len, lines)) <= 36
    assert len(lines) == 4


def test_unknown_color_maps_are_refused(explained):
    with pytest.raises(WhycamError, match=r"no color map 'zzzz'; matplotlib\.colormaps lists them"):
        explained.plot(colormap="zzzz")
    with pytest.raises(WhycamError, match="no color map 'nope'"):
        explained.plot(colormap="nope")
    with pytest.raises(WhycamError, match=r"no color map 'virids' \(did you mean viridis"):
        explained.plot(colormap="virids", signed=True)


@pytest.mark.parametrize("axes", [1, 3])
def test_series_and_volumes_are_not_drawn(axes):
    convolution = {1: torch.nn.Conv1d, 3: torch.nn.Conv3d}[axes]
    network = torch.nn.Sequential(convolution(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
                                  torch.nn.Linear(4 * 6**axes, 2))  # fmt: skip
    explained = whycam.explain(network.eval(), torch.rand(2, 3, *[6] * axes), "1")
    shape = (2, 3, *[6] * axes)
    with pytest.raises(WhycamError, match=re.escape(f"only images are drawn, and the inputs are {shape}")) as caught:
        explained.plot()
    html = explained._repr_html_()
    assert escape(repr(explained)) in html
    assert escape(str(caught.value)) in html
    assert "<img" not in html


def test_maps_with_other_shapes_are_not_drawn(explained):
    flat = {key: raw.flatten(1) for key, raw in explained.maps.items()}
    with pytest.raises(WhycamError, match=r"the maps of layer3\[-2\] are \(8, 64\), not \(B, h, w\)"):
        dataclasses.replace(explained, maps=flat).plot()


@pytest.mark.parametrize(("channels", "gray"), [(1, True), (2, True), (3, False), (4, False)])
def test_pictures_of_images_with_any_number_of_channels(channels, gray, explained):
    images = torch.rand(8, channels, 32, 32)
    shown = dataclasses.replace(explained, inputs=images).plot(3).axes[0].images[0].get_array()
    pixels = torch.as_tensor(shown.filled() if hasattr(shown, "filled") else shown)
    assert pixels.shape == (32, 32, 3)
    assert bool((pixels == pixels[..., :1]).all()) == gray
    kept = images[3, :3] if not gray else images[3].mean(0, keepdim=True)
    wanted = (kept - kept.min()) / (kept.max() - kept.min())
    torch.testing.assert_close(pixels, wanted.expand(3, -1, -1).permute(1, 2, 0))


def test_differentiable_maps_are_drawn(model, batch):
    explained = whycam.explain(model, batch[:1], "layer4[-1]", differentiable=True)
    assert explained.map().requires_grad
    assert "<img" in explained._repr_html_()


class ImageTags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def test_notebook_shows_figures_with_text_alternatives(explained):
    html = explained._repr_html_()
    parser = ImageTags()
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


@pytest.mark.parametrize(
    ("show", "message"),
    [
        (lambda e: e.heatmap(scale=torch.ones(3)), r"scale is \(3,\) for 2 maps: give one number, or one per map"),
        (lambda e: e.heatmap(scale=-1), "scale is the value that becomes 1 in a heatmap; it must not be negative"),
        (lambda e: e.heatmap(interpolation="foo"), "interpolation is 'nearest' or 'bilinear', not 'foo'"),
        (lambda e: e.aggregate(size="huge"), r"size is 'finest', 'image' or \(h, w\), not 'huge'"),
    ],
)
def test_bad_display_options_are_refused(show, message):
    explained = whycam.explain(InPlace().eval(), torch.randn(2, 3, 9, 9), "conv")
    with pytest.raises(WhycamError, match=message):
        show(explained)
