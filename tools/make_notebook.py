"""Write examples/study.ipynb: run its cells and store their output.

python tools/make_notebook.py

The cells are text in this file, so that a change to them gives a readable diff. tests/test_example_notebook.py runs
the cells of the written notebook.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "examples" / "study.ipynb"
CELLS = (
    ("markdown", """# Why does this ResNet-18 get these wrong?

This notebook repeats the study of a CIFAR-10 network on the bundled weights and images. It measures the accuracy,
collects the errors and explains them with Grad-CAM at `layer2[-2]`, `layer3[-2]` and `layer4[-1]`. Everything runs
offline, on a CPU, in a minute.

    pip install 'whycam[study]'"""),
    ("code", """import whycam
from whycam.data import take
from whycam.report.publish import publish
from whycam.study import Config, run_study

model, spec = whycam.load("cifar10-resnet18")
source = whycam.open_source("bundled")
print(f"{spec.architecture}, classes: {', '.join(spec.classes)}")
print(f"{source.name}: {len(source)} images")"""),
    ("markdown", """## One image first

One forward pass and one backward pass per target give all maps: here for the predicted class and for the class with
the second highest score. The color bars are in raw units. Both targets of a layer share one color bar, so you can
compare the two rows. Nothing is interpolated: `layer4[-1]` has 16 cells, and you see 16 cells."""),
    ("code", """layers = ["layer2[-2]", "layer3[-2]", "layer4[-1]"]
image = spec.preprocess(source.read([2]))
runner_up = int(model(image).argsort(descending=True)[0, 1])
print(f"the runner-up is {spec.classes[runner_up]}")
explanation = whycam.explain(model, image, layers, "gradcam", {"predicted": None, spec.classes[runner_up]: runner_up})
explanation"""),
    ("markdown", """The maps are raw, signed tensors. Scaling and color are display steps. Flags name properties that a
picture would hide. `plot()` returns a matplotlib figure for a paper: `explanation.plot().savefig("why.pdf")`."""),
    ("code", """for layer in layers:
    low, high = explanation.range("gradcam", layer, "predicted")
    flags = explanation.flags["gradcam", layer, "predicted"][0]
    print(f"{layer}: {tuple(explanation.map('gradcam', layer, 'predicted').shape)}, from {low.item():.3g} "
          f"to {high.item():.3g} {flags or ''}")"""),
    ("markdown", """## The whole study

This cell explains every error of the first 100 images at three layers, for the predicted and for the true class. The
result is a report and a folder of Parquet and JSON files that any tool can read. The command line does the same:
`whycam study cifar10-resnet18 bundled --out study --limit 100`."""),
    ("code", """study = run_study(model, spec, take(source, 100), "study", Config())
publish(study)
metrics = study.metrics
low, high = metrics["accuracy_interval"]
print(f"{metrics['correct']} of {metrics['n']} right: {metrics['accuracy']:.1%} (95% interval {low:.1%} to {high:.1%})")
worst = sorted(metrics["per_class"], key=lambda row: row["accuracy"])[:3]
print("hardest:", ", ".join(f"{row['class']} {row['correct']} of {row['n']}" for row in worst))"""),
    ("markdown", """## The report

This is the page of `study/report.html`, which `whycam serve study` also shows. Click a cell of the confusion matrix to
filter the errors. The keys `j` and `k` go to the next and the previous error, `1` to `3` choose the layer, `t` changes
the target, and `?` lists all keys."""),
    ("code", "study"),
    ("markdown", """## What this cannot tell you

A map shows where the network's activations, weighted by its gradients, are large. It does not say that those pixels
caused the prediction. Maps of wrong predictions often look as convincing as maps of correct ones. So compare the
predicted class with the true class on one scale, look at the raw range, and measure how faithful a method is before
you believe its maps."""),
)  # fmt: skip


def main() -> None:
    """Run all cells in an empty folder and write the notebook."""
    namespace: dict[str, Any] = {}
    cells, count = [], 0
    start = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, (kind, text) in enumerate(CELLS):
                cell: dict[str, Any] = {
                    "cell_type": kind, "id": f"cell-{number}", "metadata": {},
                    "source": text.splitlines(keepends=True),
                }  # fmt: skip
                if kind == "code":
                    count += 1
                    cell |= {"execution_count": count, "outputs": run(text, namespace, count)}
                cells.append(cell)
        finally:
            os.chdir(start)
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    TARGET.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size:,} bytes\n")


def run(text: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run a cell as Jupyter does; return what it prints and how its last expression is displayed."""
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        shown = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_html_"):
            shown["text/html"] = value._repr_html_().splitlines(keepends=True)
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown})
    return outputs


if __name__ == "__main__":
    main()
