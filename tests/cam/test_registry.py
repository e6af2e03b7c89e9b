"""Methods by name and with options, methods of one's own, and what other packages offer."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

import whycam
from whycam.cam import METHODS, LayerTrace, Method, method, resolve_methods
from whycam.errors import WhycamError

PROMISED = {
    "cam", "gradcam", "hirescam", "gradcamelementwise", "gradcam++", "xgradcam", "layercam", "eigencam",
    "eigengradcam", "segeigencam", "kpcacam", "fem", "shapleycam", "smoothgradcam++", "finercam", "refinecam",
    "counterfactual", "random", "sobel", "center", "guidedbackprop", "guidedgradcam", "inputgradient",
    "integratedgradients", "smoothgrad", "scorecam", "sscam", "iscam", "ablationcam", "reciprocam", "groupcam",
    "fullgrad",
}  # fmt: skip


def test_every_method_that_is_promised_is_there():
    assert set(METHODS) >= PROMISED


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_says_what_it_is(name):
    known = METHODS[name]
    assert known.summary.endswith(".")
    assert known.paper
    assert "\n" not in known.summary


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Grad-CAM++", "gradcam++"), ("grad_cam_++", "gradcam++"), ("FEM(k=3)", "fem(k=3)"),
        ("smooth_grad-CAM++( n=2, sigma=0.1)", "smoothgradcam++(n=2, sigma=0.1)"), ("KPCA_CAM", "kpcacam"),
    ],
)  # fmt: skip
def test_names_and_options(written, name):
    assert resolve_methods(written)[0].name == name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("fem(q=3)", "FEM has no option 'q'; its options are k"),
        ("gradcam(k=3)", "Grad-CAM has no option 'k'; it has no options"),
        ("fem(3)", r"method 'fem\(3\)': its options cannot be read; write them like fem\(k=3\)"),
        ("fem(k=", "its options cannot be read"),
        ("fem(k=__import__('os'))", "its options cannot be read"),
        ("grad-cam+", r"unknown method 'grad-cam\+' \(did you mean gradcam"),
    ],
)
def test_wrong_names_and_options(written, message):
    with pytest.raises(WhycamError, match=message):
        resolve_methods(written)


def test_options_reach_the_method(model, batch):
    explained = whycam.explain(model, batch, "layer4[-1]", ["fem", "fem(k=0)", METHODS["fem"].using(k=2.0)])
    assert torch.equal(explained.map("fem"), explained.map("fem(k=2.0)"))
    assert not torch.equal(explained.map("fem"), explained.map("fem(k=0)"))


@pytest.mark.parametrize("name", ["fem(k=3)", "gradcam"])
def test_methods_can_be_pickled(name):
    one = resolve_methods(name)[0]
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert again.name == name


def test_a_method_of_ones_own(model, batch):
    @method("Mean CAM", paper="nowhere", needs=())
    def meancam(trace: LayerTrace, power: int = 1) -> torch.Tensor:
        """The mean over channels."""
        return trace.activations.mean(dim=1) ** power

    try:
        assert isinstance(meancam, Method)
        assert METHODS["meancam"] is meancam
        explained = whycam.explain(model, batch, "layer4[-1]", ["mean-cam", "meancam(power=2)"])
        assert torch.equal(explained.map("meancam") ** 2, explained.map("meancam(power=2)"))
        with pytest.raises(WhycamError, match="exists already"):
            method("mean_cam", paper="nowhere")(lambda trace: trace.activations.sum(1))
    finally:
        del METHODS["meancam"]


def test_methods_that_other_packages_offer(tmp_path):
    """A real installed distribution: its module is imported when its method's name is first asked for."""
    (tmp_path / "elsewhere.py").write_text(
        "from whycam.cam import method\n"
        "@method('Far CAM', paper='elsewhere', needs=())\n"
        "def farcam(trace):\n"
        "    'The largest channel.'\n"
        "    return trace.activations.amax(dim=1)\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[whycam.methods]\nfarcam = elsewhere\n")
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import whycam.cam\n"
        "assert 'elsewhere' not in sys.modules\n"
        "print(whycam.cam.resolve_methods('far_cam')[0].title)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "Far CAM\n", result.stderr
