"""The documentation is true: its Python runs, its commands exist, its links and generated tables are complete."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib
import pytest

from whycam.cam.methods import METHODS
from whycam.cli.main import build_parser
from whycam.training import RECIPES, Recipe, find_recipe

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from docs_blocks import OUTPUT, blocks, commands, run_python
from docs_hooks import with_outputs
from docs_tables import TABLES, attributes_of, command_line_reference, functions_named_like_module, methods_table

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.glob("docs/**/*.md"))} | {
    "README.md": (ROOT / "README.md").read_text()
}
WITH_PYTHON = [name for name, text in PAGES.items() if any(block.language == "python" for block in blocks(text))]
COMMANDS = [(name, words) for name, text in PAGES.items() for words in commands(text)]
COMMANDS += [("cli.md, generated", words) for words in commands(command_line_reference())]


def test_pages_have_python_and_commands():
    assert {"README.md", "docs/start.md", "docs/limits.md", "docs/coming-from.md"} < set(WITH_PYTHON)
    assert len([words for _, words in COMMANDS if "whycam" in words]) > 25


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_of_a_page_runs(page):
    before = dict(METHODS)
    printed = run_python(PAGES[page], page)
    assert before == METHODS
    # A block with an output marker must print something.
    for end, text in printed.items():
        assert text.strip() or not PAGES[page][end:].lstrip("\n").startswith(OUTPUT)
    with_outputs(re.sub(r"```python.*?```", "```python\nprint()\n```", PAGES[page], flags=re.DOTALL), page)
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.pyplot.get_fignums() == []


def test_a_traceback_names_the_line_of_the_page():
    first, indented, last = (
        "```python\nx = 1\n```",
        "    ```python\n    print(x)\n    ```",
        "```python\n\nassert x == 2\n```",
    )
    page = f"# Title\n\n{first}\n\n- item\n\n{indented}\n\n{last}\n"
    with pytest.raises(AssertionError) as error:
        run_python(page, "page.md")
    frame = error.traceback[-1]
    assert (frame.frame.code.raw.co_filename, frame.lineno + 1) == ("page.md", 15)
    assert list(run_python(page.replace("x == 2", "x == 1"), "page.md").values()) == ["", "1\n", ""]


def test_outputs_replace_their_markers():
    page = f"```python\nprint(6 * 7)\n```\n\n{OUTPUT}\n\nmore\n"
    assert with_outputs(page, "page.md") == "```python\nprint(6 * 7)\n```\n\n```text\n42\n```\n\nmore\n"
    with pytest.raises(ValueError, match="does not follow a Python block"):
        with_outputs(f"{OUTPUT}\n", "page.md")


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_command_exists(page, words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] in ("pip", "source"):
        return
    else:
        assert words[0] in ("whycam", "torchrun")
        whycam_words = words[words.index("whycam") + 1 :]
        options = build_parser().parse_args(whycam_words)
        if hasattr(options, "recipe"):
            find_recipe("record" if options.recipe.endswith(".yaml") else options.recipe, options.set)
        for method in getattr(options, "methods", None) or []:
            assert method in METHODS


def test_unknown_commands_fail_the_test():
    with pytest.raises(SystemExit):
        test_command_exists("page", ["whycam", "study", "--out"])
    with pytest.raises(AssertionError):
        test_command_exists("page", ["make", "coffee"])


def test_yaml_on_the_training_page_is_a_recipe(tmp_path):
    (block,) = [block for block in blocks(PAGES["docs/training.md"]) if block.language == "yaml"]
    (tmp_path / "mine.yaml").write_text(block.code)
    assert find_recipe(str(tmp_path / "mine.yaml")).name == "mine"


def test_generated_tables_are_complete():
    text = "".join(PAGES.values())
    for marker, table in TABLES.items():
        assert marker in text
        lines = [line for line in table().splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines[:5]}) == 1
    assert all(f"`{name}`" in methods_table() for name in METHODS)
    assert list(attributes_of(Recipe)) == list(Recipe().to_dict())
    assert all(f"`{name}`" in PAGES["docs/training.md"] for name in RECIPES)


def test_every_benchmark_is_on_the_figures_page():
    for script in ROOT.glob("benchmarks/*.py"):
        assert f"python benchmarks/{script.name}" in PAGES["docs/figures.md"], script.name


@pytest.mark.parametrize("package", ["cam", "data", "models", "training", "study", "metrics"])
def test_every_package_has_an_api_page(package):
    page = PAGES[f"docs/api/{package}.md"]
    assert f"::: whycam.{package}\n" in page
    assert f"<!-- functions named like their module in whycam.{package} -->" in page


def test_functions_named_like_their_module_are_found():
    assert "::: whycam.cam.explain.explain\n" in functions_named_like_module("whycam.cam")
    assert "::: whycam.training.train.train\n" in functions_named_like_module("whycam.training")
    assert "Explainer" not in functions_named_like_module("whycam.cam")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", PAGES[page]):
        assert (folder / target).exists(), target


def test_readme_examples_have_five_lines():
    readme = PAGES["README.md"]
    python, shell = (
        next(block.code for block in blocks(readme) if block.language == "python"),
        [block.code for block in blocks(readme) if block.language == "bash"][1],
    )
    assert [len(code.replace("\n\n", "\n").splitlines()) for code in (python, shell)] == [5, 5]
    assert (ROOT / "docs" / "images" / "demo.png").stat().st_size < 400_000
