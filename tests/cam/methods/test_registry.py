"""The registry: methods by name and with options, a user's own methods, methods of other packages."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

import whycam
from whycam.cam import METHODS, LayerTrace, Method, method, resolve_methods
from whycam.cam.methods import noisy
from whycam.cam.methods.registry import ENTRY_POINTS
from whycam.errors import WhycamError
from whycam.options import Range, checked

DOCUMENTED = {
    "cam", "gradcam", "hirescam", "gradcamelementwise", "gradcam++", "xgradcam", "layercam", "eigencam",
    "eigengradcam", "segeigencam", "kpcacam", "fem", "shapleycam", "smoothgradcam++", "finercam", "refinecam",
    "counterfactual", "random", "sobel", "center", "guidedbackprop", "guidedgradcam", "inputgradient",
    "integratedgradients", "smoothgrad", "scorecam", "sscam", "iscam", "ablationcam", "reciprocam", "groupcam",
    "fullgrad",
}  # fmt: skip


def test_every_documented_method_is_registered():
    assert set(METHODS) >= DOCUMENTED


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_summary_and_a_paper(name):
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
        ("gradcamplusplus", r"unknown method 'gradcamplusplus' \(did you mean gradcam\+\+"),
    ],
)
def test_unknown_names_and_options_are_refused(written, message):
    with pytest.raises(WhycamError, match=message):
        resolve_methods(written)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("fem(k='a')", "option k of FEM is a number, not 'a'"),
        ("fem(k=None)", "option k of FEM is a number, not None"),
        ("fem(k=True)", "option k of FEM is a number, not True"),
        ("fem(k=1e999)", "option k of FEM is a number, not inf"),
        ("fem(k=[1, 2])", r"option k of FEM is a number, not \[1, 2\]"),
        ("kpcacam(gamma='a')", "option gamma of KPCA-CAM is a number or None, not 'a'"),
        ("ablationcam(batch_size=1.5)", "option batch_size of Ablation-CAM is a whole number of at least 1, not 1.5"),
        ("scorecam(batch_size='x')", "option batch_size of Score-CAM is a whole number of at least 1, not 'x'"),
        ("scorecam(weights=1)", "option weights of Score-CAM is a string, not 1"),
        ("reciprocam(gaussian=1)", "option gaussian of Recipro-CAM is True or False, not 1"),
        ("groupcam(quantile=2)", "option quantile of Group-CAM is a number from 0 to 1, not 2"),
        ("center(sigma=0)", "option sigma of Center is a number of more than 0, not 0"),
        ("smoothgrad(n=0)", "option n of SmoothGrad is a whole number of at least 1, not 0"),
        ("smoothgrad(sigma=-0.1)", "option sigma of SmoothGrad is a number of at least 0, not -0.1"),
        ("smoothgradcam++(n=-1)", r"option n of Smooth Grad-CAM\+\+ is a whole number of at least 1, not -1"),
        ("integratedgradients(steps=0)", "option steps of Integrated gradients is a whole number of at least 1, not 0"),
        ("noisy(gradcam, n=1.5)", "option n of noisy is a whole number of at least 1, not 1.5"),
        ("noisy(gradcam, sigma='x')", "option sigma of noisy is a number of at least 0, not 'x'"),
        ("noisy(gradcam, foo=3)", "noisy has no option 'foo'; its options are n, sigma"),
        ("augmented(gradcam, n=3)", "augmented has no option 'n'; it has no options"),
        ("noisy(fem(k='a'), n=2)", "option k of FEM is a number, not 'a'"),
        ("fem(k={[]:1})", "its options cannot be read"),
        ("fem(k=1, k=2)", "its options cannot be read"),
        ("fem(**{'k': 1})", "its options cannot be read"),
        ("fem(k=1)()", "its options cannot be read"),
    ],
)
def test_bad_values_of_options_are_refused(written, message):
    with pytest.raises(WhycamError, match=message):
        resolve_methods(written)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_counts_below_one_are_refused(name):
    """Every option that is a count refuses 0 and other bad values; every option accepts its default."""
    for option, default in METHODS[name].defaults.items():
        if type(default) is int:
            for value in (0, -1, 1.5, True, None, "2"):
                with pytest.raises(WhycamError, match=f"option {option} of .* is a whole number of at least 1, not"):
                    METHODS[name].using(**{option: value})
            assert METHODS[name].using(**{option: 1}).options == ((option, 1),)
        # A method accepts its own defaults.
        assert METHODS[name].using(**{option: default}).function is METHODS[name].function


def test_calls_of_combinators_are_checked():
    for call in (lambda: noisy("gradcam", 1.5), lambda: noisy("gradcam", n=1.5), lambda: noisy(METHODS["fem"], 1.5)):
        with pytest.raises(WhycamError, match=r"option n of noisy is a whole number of at least 1, not 1\.5"):
            call()
    with pytest.raises(TypeError):
        noisy("gradcam", 1, 0.1, 3)
    with pytest.raises(TypeError):
        noisy("gradcam", 1, n=1)
    assert noisy("gradcam", 3, sigma=np.float32(0.5)).name == noisy("gradcam", n=np.int64(3), sigma=0.5).name
    assert METHODS["fem"].using(k=np.int64(3)).name == "fem(k=3)"


def test_options_of_a_user_s_method_follow_its_annotations():
    @method("Own CAM", paper="nowhere", needs=())
    def owncam(
        trace: LayerTrace,
        how: Literal["a", "b"] = "a",
        most: Annotated[int, Range(2, 5)] | None = None,
        plain=1,
        thing: object = None,
        hidden: NowhereToBeFound = 2.0,  # noqa: F821
    ) -> torch.Tensor:
        """The mean over channels."""
        return trace.activations.mean(dim=1)

    def unannotated(trace, plain=1, flag=False, thing=None):
        """Options by their defaults alone."""

    try:
        # One annotation cannot be evaluated, so the types of the defaults are used for all options.
        with pytest.raises(WhycamError, match="option hidden of Own CAM is a number, not 'x'"):
            owncam.using(hidden="x")
        assert owncam.using(most="x", thing=[1]).options == (("most", "x"), ("thing", [1]))
        owncam.function.__annotations__["hidden"] = "float"
        with pytest.raises(WhycamError, match="option how of Own CAM is 'a' or 'b', not 'c'"):
            owncam.using(how="c")
        with pytest.raises(WhycamError, match="option most of Own CAM is a whole number from 2 to 5 or None, not 1"):
            owncam.using(most=1)
        assert owncam.using(how="b", most=5, thing=[1]).name == "owncam(how='b', most=5, thing=[1])"
        assert owncam.using(most=None).options == (("most", None),)
    finally:
        del METHODS["owncam"]
    assert checked("it", unannotated, {"plain": 2, "flag": True, "thing": "x"})
    for wrong in ({"plain": "2"}, {"plain": 2.5}, {"flag": 1}):
        with pytest.raises(WhycamError, match="of it is"):
            checked("it", unannotated, wrong)


def test_options_change_the_map(model, batch):
    explained = whycam.explain(model, batch, "layer4[-1]", ["fem", "fem(k=0)", METHODS["fem"].using(k=2.0)])
    assert torch.equal(explained.map("fem"), explained.map("fem(k=2.0)"))
    assert not torch.equal(explained.map("fem"), explained.map("fem(k=0)"))


@pytest.mark.parametrize("name", ["fem(k=3)", "gradcam"])
def test_methods_can_be_pickled(name):
    one = resolve_methods(name)[0]
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert again.name == name


def test_user_s_method(model, batch):
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


def distribution(folder, name, entry):
    """Write the metadata of an installed package with an entry point for methods."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[whycam.methods]\n{entry}\n")


def test_methods_of_other_packages(tmp_path):
    """An installed distribution: its module is imported when the name of its method is looked up first."""
    (tmp_path / "elsewhere.py").write_text(
        "from whycam.cam import method\n"
        "@method('Far CAM', paper='elsewhere', needs=())\n"
        "def farcam(trace):\n"
        "    'The largest channel.'\n"
        "    return trace.activations.amax(dim=1)\n"
    )
    distribution(tmp_path, "elsewhere", "farcam = elsewhere")
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import whycam.cam\n"
        "assert 'elsewhere' not in sys.modules\n"
        "print(whycam.cam.resolve_methods('far_cam')[0].title)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "Far CAM\n", result.stderr


def test_broken_plugin_is_a_warning_and_other_methods_work(tmp_path):
    distribution(tmp_path, "broken", "far_cam = nowhere_at_all")
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from whycam import WhycamError\n"
        "from whycam.cam import resolve_methods\n"
        "for name in ('gradcamm', 'Far-CAM', 'gradcamm'):\n"
        "    try:\n"
        "        resolve_methods(name)\n"
        "    except WhycamError as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    first, second, third = result.stdout.splitlines()
    assert first == third
    assert first.startswith("unknown method 'gradcamm' (did you mean gradcam")
    assert second.startswith("method 'Far-CAM' is offered by a package that cannot be imported: nowhere_at_all: Module")
    assert result.stderr.count("the methods of the plugin 'far_cam' are missing") == 1
    assert "Traceback" not in result.stderr


def test_the_documentation_names_the_entry_points():
    page = (Path(__file__).parents[3] / "docs" / "adding-a-method.md").read_text()
    (snippet,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert list(tomllib.loads(snippet)["project"]["entry-points"]) == [ENTRY_POINTS]
