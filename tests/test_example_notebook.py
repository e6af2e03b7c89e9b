"""The example notebook: its cells run, its stored output is theirs, and the file is small."""

from __future__ import annotations

import json
from pathlib import Path

import whycam

NOTEBOOK = Path(__file__).parent.parent / "examples" / "study.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]


def test_notebook_is_small_and_executed():
    assert NOTEBOOK.stat().st_size < 500_000
    assert (CONTENT["nbformat"], CONTENT["nbformat_minor"]) == (4, 5)
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    shown = [data for cell in CODE for output in cell["outputs"] if (data := output.get("data"))]
    assert any("data:image/png;base64," in "".join(data["text/html"]) for data in shown)
    assert any("<iframe srcdoc=" in "".join(data["text/html"]) for data in shown)
    assert "/tmp/" not in NOTEBOOK.read_text(encoding="utf-8")


def test_notebook_cells_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for cell in CODE:
        exec("".join(cell["source"]), namespace)
    kept = next(output["text"] for output in CODE[-2]["outputs"] if output["output_type"] == "stream")
    metrics = whycam.Study.load(tmp_path / "study").metrics
    assert kept[0].startswith(f"{metrics['correct']} of {metrics['n']} right")
