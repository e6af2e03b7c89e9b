"""``whycam evaluate``, ``study``, ``demo``, ``report`` and ``explain``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from whycam.cam.explanation import Explanation
from whycam.cli import console
from whycam.data import ImageSource, open_source, take
from whycam.device import pick_device
from whycam.errors import WhycamError, require_study_packages
from whycam.files import replacing, writing
from whycam.models import ModelSpec, load

if TYPE_CHECKING:
    from whycam.study.image_files import ExplainedImage

BUNDLED_MODEL = "cifar10-resnet18"
BUNDLED_DATA = "bundled"


def evaluate(options: Namespace) -> None:
    """Score a checkpoint on a data set."""
    from whycam.study.predict import evaluate as evaluate_model

    model, spec, source = open_dataset(options)
    with console.progress() as show:
        scores = evaluate_model(model, spec, source, batch_size=options.batch_size, progress=show)
    if options.json:
        console.say_json(scores.to_dict(spec.classes))
        return
    low, high = scores.interval
    console.say(f"{source.name}, {source.split}: {scores.correct} of {scores.n} right")
    console.say(
        f"accuracy {console.percent(scores.accuracy)} (95% interval {console.percent(low)} to {console.percent(high)})"
    )
    console.say(f"cross-entropy {scores.cross_entropy:.4f}, expected calibration error {scores.ece:.4f}")


def study(options: Namespace) -> None:
    """Explain every error of a checkpoint on a data set."""
    model, spec, source = open_dataset(options)
    _study(options, model, spec, source)


def demo(options: Namespace) -> None:
    """Run the study on bundled weights and images."""
    options.limit = None
    model, spec = load(BUNDLED_MODEL, device=pick_device(options.device))
    _study(options, model, spec, open_source(BUNDLED_DATA))


def report(options: Namespace) -> None:
    """Draw a study's figures and report again."""
    from whycam.report.publish import publish
    from whycam.study import Study

    with console.progress() as show:
        page = publish(Study.load(options.study), progress=show)
    if options.json:
        console.say_json({"report": str(page)})
    else:
        console.say(f"report: {page}")


def explain(options: Namespace) -> None:
    """Explain single images."""
    from whycam.study.image_files import explain_files

    require_study_packages("explaining images")
    model, spec = load(options.checkpoint, device=pick_device(options.device))
    _say_notes(spec)
    paths = [Path(image) for image in options.images]
    _refuse_namesakes(paths)
    out = Path(options.out)
    explained = explain_files(
        model, spec, paths, layers=options.layers, methods=options.methods, targets=options.target
    )
    results = []
    with console.progress() as show:
        for image in explained:
            with writing(out):
                out.mkdir(parents=True, exist_ok=True)
            figure = _save_figure(image.explanation, out / f"{image.path.name}.whycam.png")
            ranking = [{"class": name, "probability": probability} for name, probability in image.ranking]
            facts = _map_facts(image.explanation)
            results.append({"image": str(image.path), "figure": str(figure), "ranking": ranking, "maps": facts})
            show("explain", len(results), len(paths))
            if not options.json:
                _say_image(image, figure, facts)
    if options.json:
        console.say_json({"images": results})


def _refuse_namesakes(paths: list[Path]) -> None:
    """Figures are named after their images: two of one name would be written over each other."""
    seen: dict[str, Path] = {}
    for path in paths:
        if path.name in seen:
            raise WhycamError(
                f"{seen[path.name]} and {path} have the same name, and so would their figures: explain them into "
                "different folders with --out"
            )
        seen[path.name] = path


def _say_image(image: ExplainedImage, figure: Path, facts: list[dict[str, Any]]) -> None:
    top = ", ".join(f"{name} {console.percent(probability)}" for name, probability in image.ranking[:3])
    console.say(f"{image.path}: {top}")
    for fact in facts:
        flags = f" ({', '.join(fact['flags'])})" if fact["flags"] else ""
        console.say(
            f"  {fact['method']} {fact['layer']} for {fact['target']}: from {fact['raw_min']:.3g} to "
            f"{fact['raw_max']:.3g}, sum {fact['raw_sum']:.3g}, logit {fact['score']:.3g}{flags}"
        )
    console.say(f"  figure: {figure}")


def open_dataset(options: Namespace) -> tuple[nn.Module, ModelSpec, ImageSource]:
    """The checkpoint and the data that a command was given."""
    model, spec = load(options.checkpoint, device=pick_device(options.device))
    _say_notes(spec)
    source = open_source(options.data, options.split, size=spec.preprocess.size, classes=spec.classes)
    if options.limit is not None:
        if options.limit < 1:
            raise WhycamError(f"--limit must be at least 1, got {options.limit}")
        source = take(source, options.limit)
    return model, spec, source


def _study(options: Namespace, model: nn.Module, spec: ModelSpec, source: ImageSource) -> None:
    require_study_packages("a study")
    from whycam.report.publish import publish
    from whycam.study import Config, run_study

    config = Config.from_options(vars(options))
    drawn: list[Path] = []
    with console.progress() as show:
        finished = run_study(
            model, spec, source, options.out, config, progress=show,
            publish=lambda done: drawn.append(publish(done, progress=show)),
        )  # fmt: skip
        page = drawn[0] if drawn else publish(finished, progress=show)
    metrics = finished.metrics
    issues = finished.label_issues["suspect"].to_pylist().count(True)
    if options.json:
        console.say_json(
            {
                "study": str(finished.path),
                "report": str(page),
                "n": metrics["n"],
                "errors": metrics["errors"],
                "accuracy": metrics["accuracy"],
                "labels_worth_a_look": issues,
                "timings": finished.manifest["timings"],
                "peak_memory_mib": finished.manifest["peak_memory_mib"],
            }
        )
        return
    low, high = metrics["accuracy_interval"]
    console.say(
        f"{metrics['correct']} of {metrics['n']} right: accuracy {console.percent(metrics['accuracy'])} "
        f"(95% interval {console.percent(low)} to {console.percent(high)})"
    )
    console.say(f"{metrics['errors']} errors explained at {', '.join(finished.manifest['config']['layers'])}")
    if issues:
        console.say(f"{issues} of them may be the label's error: the report lists them as worth a look")
    console.say(f"report:  {page}")
    console.say(f"figures: {finished.path / 'figures'}")
    console.say(f"study:   {finished.path}")


def _say_notes(spec: ModelSpec) -> None:
    for text in spec.notes:
        console.note(text)


def _save_figure(explanation: Explanation, path: Path) -> Path:
    figure = explanation.plot()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    return path


def _map_facts(explanation: Explanation) -> list[dict[str, Any]]:
    flags = explanation.flags
    return [
        {
            "method": method,
            "layer": layer,
            "target": target,
            "score": float(explanation.scores[target][0]),
            "raw_min": float(raw.min()),
            "raw_max": float(raw.max()),
            "raw_sum": float(raw.sum()),
            "flags": list(flags[method, layer, target][0]),
        }
        for (method, layer, target), raw in explanation.maps.items()
    ]
