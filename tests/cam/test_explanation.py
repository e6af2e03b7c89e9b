"""The result: chosen by name, frozen, saved and read back, drawn, and made by something that can be pickled."""

from __future__ import annotations

import dataclasses
import io
import pickle

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
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4 * 3
    assert titles[1].startswith("layer3[-2] (8×8, full = ")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")
    with pytest.raises(WhycamError, match="image 8 does not exist; this explanation has 8"):
        explained.plot(8)


def test_explainer_survives_pickling(model, batch):
    explainer = whycam.Explainer(model, ["layer3[-2]"], ["hirescam"], targets=3)
    again = pickle.loads(pickle.dumps(explainer))
    torch.testing.assert_close(again(batch).map(), explainer(batch).map())
