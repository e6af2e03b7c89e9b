"""What the command line shows while it works and when it is done; quiet when piped."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from whycam.errors import missing_extra

STAGES = {
    "predict": "Predicting",
    "explain": "Explaining errors",
    "score": "Scoring maps",
    "measure": "Measuring",
    "figures": "Drawing figures",
    "report": "Writing the report",
    "download": "Downloading",
    "compare": "Comparing methods",
}


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage on standard error, told (stage, done, total); nothing at all where that is no terminal."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise missing_extra("rich", "study", "the command line") from error

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def say(text: str) -> None:
    """One line of result on standard output."""
    sys.stdout.write(text + "\n")


def flush() -> None:
    """Let whoever reads standard output through a pipe have what was said so far."""
    sys.stdout.flush()


def say_json(values: Mapping[str, Any]) -> None:
    """The result for machines: one JSON object on standard output; numbers that JSON cannot write are null."""
    sys.stdout.write(json.dumps(_writable(values), ensure_ascii=False, allow_nan=False) + "\n")


def _writable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _writable(member) for key, member in value.items()}
    return [_writable(member) for member in value] if isinstance(value, list | tuple) else value


def note(text: str) -> None:
    """Something to know besides the result, on standard error."""
    sys.stderr.write(f"whycam: {text}\n")


def percent(share: float) -> str:
    """0.8677 → 86.77%."""
    return f"{100 * share:.2f}%"
