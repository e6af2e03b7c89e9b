"""The command line on real files, mostly in real processes. Every mistake must give one sentence."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import whycam
from whycam.cam.methods import find_method
from whycam.cli.main import main

COMMANDS = [
    "demo", "data", "summary", "layers", "recipes", "evaluate", "study", "report", "explain", "serve", "methods",
    "train", "lr-find", "completion", "compare", "measures",
]  # fmt: skip


def command(*arguments, **options):
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "whycam", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        **options,
    )


def error_sentence(status, out, error):
    """Check that a command failed as it must; return its error sentence."""
    assert status == 2, error
    assert out == ""
    lines = error.strip().splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("whycam: error: ")
    return lines[0].removeprefix("whycam: error: ")


def refused_by_process(*arguments, **options):
    """Run a command that must fail; return its error sentence."""
    result = command(*arguments, **options)
    return error_sentence(result.returncode, result.stdout, result.stderr)


@pytest.fixture
def here(capfd):
    """`command` in this process. Starting a process takes longer than most commands."""

    def run(*arguments):
        capfd.readouterr()
        return subprocess.CompletedProcess(arguments, main([*map(str, arguments)]), *capfd.readouterr())

    return run


@pytest.fixture
def refused(here):
    """`refused_by_process` in this process."""

    def run(*arguments):
        result = here(*arguments)
        return error_sentence(result.returncode, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of class/name.png with 24 real images."""
    root = tmp_path_factory.mktemp("images")
    source = whycam.open_source("bundled")
    for index in range(24):
        path = root / source.classes[source.labels[index]] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(source.read([index])[0].permute(1, 2, 0).numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def image(folder):
    return sorted(folder.rglob("*.png"))[0]


def test_no_command_shows_first_steps():
    result = command()
    assert result.returncode == 0
    assert "whycam demo --out demo" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name):
    result = command(name, "--help")
    assert result.returncode == 0
    assert re.search(f"example: .*whycam {name}", result.stdout)


def test_every_command_is_listed():
    listed = command("--help").stdout
    assert all(re.search(rf"^ +{name}\b", listed, re.MULTILINE) for name in COMMANDS)


def test_evaluate_prints_text_or_json(folder):
    text = command("evaluate", "cifar10-resnet18", folder, "--split", "all")
    assert text.returncode == 0, text.stderr
    assert re.search(r"\d+ of 24 right\naccuracy \d+\.\d+% \(95% interval", text.stdout)
    machine = json.loads(command("evaluate", "cifar10-resnet18", folder, "--split", "all", "--json").stdout)
    assert machine["n"] == 24
    assert f"{machine['correct']} of 24 right" in text.stdout
    assert text.stderr == ""  # piped: no progress


def test_study_writes_report_and_figures(tmp_path):
    out = tmp_path / "study"
    result = command("study", "cifar10-resnet18", "bundled", "--out", out, "--limit", 60, "--json")
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["n"] == 60
    assert Path(values["report"]) == out / "report.html"
    assert (out / "report.html").stat().st_size > 10_000
    figures = {path.name for path in (out / "figures").iterdir()}
    assert {"misclassified.png", "confusion.png"} < figures
    assert len([name for name in figures if name.startswith("gradcam-")]) == 3
    (out / "report.html").unlink()
    again = command("report", out)
    assert again.returncode == 0
    assert (out / "report.html").exists()


def test_explain_writes_a_figure_and_prints_its_maps(image, tmp_path):
    result = command("explain", "cifar10-resnet18", image, "--target", "Cat", "--out", tmp_path / "why")
    assert result.returncode == 0, result.stderr
    figure = tmp_path / "why" / f"{image.name}.whycam.png"
    with Image.open(figure) as opened:
        assert opened.format == "PNG"
    assert str(figure) in result.stdout
    assert len(re.findall(r"gradcam layer\d\[-\d\] for (?:predicted|cat)", result.stdout)) == 6
    methods = ("--methods", "gradcam", "refinecam", "sobel")  # each has maps at other layers
    again = command("explain", "cifar10-resnet18", image, "--json", "--out", tmp_path / "b", *methods)
    assert again.returncode == 0, again.stderr
    values = json.loads(again.stdout)
    layers = ["layer2[-2]", "layer3[-2]", "layer4[-1]"]
    assert [fact["layer"] for fact in values["images"][0]["maps"]] == [*layers, "+".join(layers), "input"]
    assert sum(entry["probability"] for entry in values["images"][0]["ranking"]) == pytest.approx(1, abs=1e-5)


def test_summary_and_methods(here):
    assert "Estimated Total Size (MB): 53.89" in here("summary").stdout
    assert "Total params: 21,282,122" in here("summary", "resnet34").stdout
    names = [entry["name"] for entry in json.loads(here("methods", "--json").stdout)["methods"]]
    assert {"gradcam", "hirescam"} <= set(names)
    text = command("methods").stdout
    assert "arXiv:1610.02391" in text
    _, options, combinators = re.split(r"^(?:options|combinators), written .*:$", text, flags=re.MULTILINE)
    made = json.loads(here("methods", "--json").stdout)["combinators"]
    assert [entry["name"] for entry in made] == ["augmented", "eigen", "noisy"]
    assert {entry["name"]: entry["options"] for entry in made}["noisy"] == {"n": 8, "sigma": 0.1}
    assert re.search(r"^  noisy\(METHOD, n=8, sigma=0.1\)  The mean map over n noisy copies", combinators, re.MULTILINE)
    # Each listed method must be accepted as it is written there.
    listed = [line.strip() for line in options.splitlines() if line.strip()]
    listed += [
        line.strip().split("  ")[0].replace("METHOD", "fem") for line in combinators.splitlines() if line.strip()
    ]
    assert len(listed) > 10
    for line in listed:
        assert find_method(line).name.partition("(")[0] == line.partition("(")[0]


def test_layers(here):
    text = command("layers").stdout
    assert re.search(r"^layer2.1 +BasicBlock +128 +16×16  \d+×\d+ pixels$", text, re.MULTILINE)
    assert re.search(r"^layer4.1 +BasicBlock +512 +4×4  the whole image  ← default$", text, re.MULTILINE)
    values = json.loads(here("layers", "resnet34", "--json").stdout)
    assert values["default"] == "layer4.2"
    assert {"path", "grid", "channels", "receptive_field"} <= values["layers"][0].keys()


def test_exif_rotation_and_unusual_modes(here, tmp_path):
    pixels = np.arange(32 * 24 * 3, dtype=np.uint8).reshape(32, 24, 3)
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # 6: rotate by 90° to show it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    upright.convert("RGBA").save(tmp_path / "rgba.png")
    rankings = {
        name: json.loads(here("explain", "cifar10-resnet18", tmp_path / name, "--json", "--out", tmp_path).stdout)
        for name in ("rotated.png", "upright.png", "rgba.png")
    }
    tops = [values["images"][0]["ranking"] for values in rankings.values()]
    assert tops[0] == tops[1] == tops[2]
    upright.convert("L").save(tmp_path / "gray.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    result = here("explain", "cifar10-resnet18", tmp_path / "gray.png", tmp_path / "gray16.png", "--out", tmp_path)
    assert result.returncode == 0, result.stderr


def test_unreadable_images_are_refused(refused, tmp_path, image):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:200])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    out = tmp_path / "out"
    names = ("animated.gif", "huge.png", "cut.png", "text.png", "empty.png", "missing.png")
    for name in names:
        assert name in refused("explain", "cifar10-resnet18", image, tmp_path / name, "--out", out)
    assert "huge.png" in refused_by_process("explain", "cifar10-resnet18", tmp_path / "huge.png", "--out", out)
    assert not out.exists()


def test_images_with_the_same_name_are_refused(refused, image, tmp_path):
    twin = tmp_path / image.name
    twin.write_bytes(image.read_bytes())
    sentence = refused("explain", "cifar10-resnet18", image, twin, "--out", tmp_path / "out")
    assert "have the same name, and so would their figures" in sentence
    assert not (tmp_path / "out").exists()


def test_unknown_names_and_values_are_refused(refused, image, tmp_path):
    study = ["study", "cifar10-resnet18", "bundled", "--out", tmp_path / "out"]
    explain, evaluate = ["explain", "cifar10-resnet18", image], ["evaluate", "cifar10-resnet18"]
    expected = {
        (*study, "--layers", "layer3[-9]"): "unknown layer 'layer3[-9]' (did you mean layer3",
        (*study, "--methods", "gradcan"): "did you mean gradcam",
        (*explain, "--target", "cut"): "unknown class 'cut' (did you mean cat",
        (*explain, "--target", "10"): "unknown class '10'",
        ("evaluate", tmp_path / "nothing.pth", "bundled"): "no such checkpoint",
        (*evaluate, tmp_path / "nothing"): "nothing",
        (*evaluate, "bundled", "--device", "cudaa"): "device 'cudaa' is not available",
        (*study, "--limit", 0): "--limit must be at least 1",
        (*study, "--batch-size", 0): "batch size must be at least 1",
        (*study, "--score-images", -1): "the maps of 0 or more errors can be scored, got -1",
        (*evaluate, "bundled", "--batch-size", 0): "batch size must be at least 1",
        (*evaluate, "bundled", "--split", "train"): "train",
    }
    for arguments, part in expected.items():
        assert part in refused(*arguments)
    assert not (tmp_path / "out").exists()


def test_unknown_folder_classes_are_refused(refused, tmp_path, image):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_bytes(image.read_bytes())
    sentence = refused("evaluate", "cifar10-resnet18", tmp_path, "--split", "all")
    assert "cats" in sentence
    assert "cat" in sentence.replace("cats", "")


def test_output_folder_with_other_files_is_refused(refused, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    sentence = refused("study", "cifar10-resnet18", "bundled", "--out", tmp_path)
    assert "holds something else (thesis.tex)" in sentence
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_output_on_a_read_only_file_system_is_refused(refused):
    sentence = refused("study", "cifar10-resnet18", "bundled", "--out", "/proc/whycam-study")
    assert "/proc/whycam-study: cannot be written" in sentence


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_is_one_sentence(small_disk):
    (small_disk / "ballast").write_bytes(bytes(900 * 1024))
    out = small_disk / "study"
    sentence = refused_by_process("study", "cifar10-resnet18", "bundled", "--out", out, "--limit", 300)
    assert "the disk is full; free some space and run the same command again" in sentence
    assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]
    (small_disk / "ballast").unlink()
    # The study is marked as incomplete. It is not continued here, since its figures may not fit on this disk.
    with pytest.raises(whycam.WhycamError, match="incomplete"):
        whycam.Study.load(out)


def test_file_size_limit_is_one_sentence(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    out = tmp_path / "study"
    sentence = refused_by_process("study", "cifar10-resnet18", "bundled", "--out", out, "--limit", 50, preexec_fn=limit)
    assert "cannot be written" in sentence


def test_interrupted_study_is_continued_by_the_same_command(tmp_path):
    out = tmp_path / "study"
    arguments = ["study", "cifar10-resnet18", "bundled", "--out", str(out), "--limit", "300", "--batch-size", "8"]
    arguments += ["--score-images", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "whycam", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A process that a shell started in the background ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (out / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "whycam: interrupted; run the same command again; a study continues where it stopped\n"
    assert command(*arguments).returncode == 0
    assert whycam.Study.load(out).metrics["n"] == 300


def test_reader_that_closes_the_pipe_early():
    process = subprocess.Popen(
        [sys.executable, "-m", "whycam", "summary"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert error == b""
