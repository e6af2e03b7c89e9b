"""The output of the command line: progress, results and notes. Progress is shown on a terminal only."""

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
    """Show one progress bar per stage on standard error; show nothing if standard error is not a terminal.

    Yields:
        The function to call with (stage, done, total).
    """
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
    """Print one line of the result on standard output."""
    sys.stdout.write(text + "\n")


def flush() -> None:
    """Send the output so far to the reader of a pipe."""
    sys.stdout.flush()


def say_json(values: Mapping[str, Any]) -> None:
    """Print the result as one JSON object on standard output. NaN and infinities, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(_json_value(values), ensure_ascii=False, allow_nan=False) + "\n")


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _json_value(member) for key, member in value.items()}
    return [_json_value(member) for member in value] if isinstance(value, list | tuple) else value


def note(text: str) -> None:
    """Print a remark that is not part of the result, on standard error."""
    sys.stderr.write(f"whycam: {text}\n")


def percent(share: float) -> str:
    """0.8677 → 86.77%."""
    return f"{100 * share:.2f}%"
