"""``whycam compare`` and ``whycam measures``: which explanation method to trust on a network."""

from __future__ import annotations

from argparse import Namespace

from whycam.cli import console
from whycam.cli.commands.study import open_dataset
from whycam.comparison import METRICS
from whycam.comparison.run import DEFAULT_METRICS
from whycam.errors import require_study_packages


def compare(options: Namespace) -> None:
    """Compare explanation methods and controls on a checkpoint and a data set."""
    require_study_packages("a comparison")
    from whycam.comparison.folder import RESULT, SCORES, compare_on
    from whycam.comparison.rendering import READING, notes_on, text_table, verdict, write_comparison

    model, spec, source = open_dataset(options)
    with console.progress() as show:
        show("compare", 0, 1)  # the number of steps is known only after all maps are computed
        try:
            found = compare_on(
                model, spec, source, options.out, methods=options.methods, layers=options.layers,
                metrics=options.measures, images=options.images, seed=options.seed,
                batch_size=options.batch_size, progress=lambda _metric, done, total: show("compare", done, total),
            )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt("a comparison cannot resume, so nothing was kept") from None
        comparison = found.comparison
        title = f"{comparison.images} images of {source.name}, {source.split}; maps of the predicted class"
        figure, page = write_comparison(comparison, found.path, title)
    if options.json:
        console.say_json({"figure": str(figure), "table": str(page), **found.record})
        return
    console.say(title + "\n")
    console.say(text_table(comparison) + "\n")
    for line in READING:
        console.say(line)
    console.say("\n" + verdict(comparison))
    for note in notes_on(comparison):
        console.note(note)
    console.say(f"\nfigure: {figure}")
    console.say(f"table:  {page}")
    console.say(f"result: {found.path / RESULT}")
    console.say(f"scores: {found.path / SCORES}")


def measures(options: Namespace) -> None:
    """List the metrics."""
    if options.json:
        console.say_json(
            {"measures": [known.facts() | {"default": known.name in DEFAULT_METRICS} for known in METRICS.values()]}
        )
        return
    for known in METRICS.values():
        console.say(f"{known.name:<12} {known.summary}")
        default = "; computed by default" if known.name in DEFAULT_METRICS else ""
        console.say(f"{'':<12} {known.better} is better{default}; {known.paper}")
