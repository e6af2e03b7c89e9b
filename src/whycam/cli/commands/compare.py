"""``whycam compare``: which explanation method to trust on a network."""

from __future__ import annotations

from argparse import Namespace

from whycam.cli import console
from whycam.cli.commands.study import open_dataset
from whycam.comparison.measures import MEASURES
from whycam.comparison.ranking import DEFAULT
from whycam.errors import require_study_packages


def compare(options: Namespace) -> None:
    """Judge explanation methods on a checkpoint and a data set, beside controls."""
    require_study_packages("a comparison")
    from whycam.comparison.folder import RESULT, SCORES, compare_on
    from whycam.comparison.rendering import READING, notes_on, text_table, verdict, write_comparison

    model, spec, source = open_dataset(options)
    with console.progress() as show:
        show("compare", 0, 1)  # how much there is to do is known only when all maps are made
        try:
            found = compare_on(
                model, spec, source, options.out, methods=options.methods, layers=options.layers,
                measures=options.measures, images=options.images, seed=options.seed,
                batch_size=options.batch_size, progress=lambda _measure, done, total: show("compare", done, total),
            )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was kept: a comparison is made in one go") from None
        comparison = found.comparison
        said = f"{comparison.images} images of {source.name}, {source.split}; maps of the predicted class"
        figure, page = write_comparison(comparison, found.path, said)
    if options.json:
        console.say_json({"figure": str(figure), "table": str(page), **found.record})
        return
    console.say(said + "\n")
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
    """List the measures."""
    if options.json:
        console.say_json(
            {"measures": [known.facts() | {"default": known.name in DEFAULT} for known in MEASURES.values()]}
        )
        return
    for known in MEASURES.values():
        console.say(f"{known.name:<12} {known.summary}")
        asked = "; measured by default" if known.name in DEFAULT else ""
        console.say(f"{'':<12} {known.better} is better{asked}; {known.paper}")
