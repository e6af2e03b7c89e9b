"""The report's part on how faithful the maps are: the table of scores per layer, and its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whycam.cam.methods.registry import method_note
from whycam.study.road_scores import CENTER, NOISE, SEED, is_control

if TYPE_CHECKING:
    from whycam.study.folder import Study

BAR_WIDTH, _MARGIN = 160.0, 8.0
NAMED = 6
"""Largest number of maps that a sentence names; of more it gives the number."""
_CONTROLS = {NOISE: "Control: noise", CENTER: "Control: center"}
_AGAINST = {"above": "above", "below": "below", "unclear": "not told apart", None: "–"}


@dataclass(frozen=True)
class ScoreRow:
    """One row of the table, as printed.

    Attributes:
        method: the method's title, or the control's name.
        layer: the layer's name, or "" for a control.
        score: the combined score; "–" if no map could be ranked.
        interval: for example "0.07 to 0.18"; "" if fewer than two images were scored.
        morf: mean probability without the most relevant pixels.
        lerf: mean probability without the least relevant pixels.
        n: number of images.
        against: "above", "below" or "not told apart" from noise; "–" for a control.
        bar: positions of the score and of the interval's ends on the bar, in its units; empty without an interval.
    """

    method: str
    layer: str
    score: str
    interval: str
    morf: str
    lerf: str
    n: int
    against: str
    bar: tuple[float, ...]


@dataclass(frozen=True)
class ScoreTable:
    """The part "Scores per layer".

    Attributes:
        why: a sentence that says why there are no scores; None if there are scores.
        lead: the description of the experiment.
        findings: sentences that compare the maps with the controls.
        rows: the table.
        zero: the position of 0 on the bars.
        band: the positions of the noise control's interval on the bars; empty without an interval.
    """

    why: str | None
    lead: str = ""
    findings: tuple[str, ...] = ()
    rows: tuple[ScoreRow, ...] = ()
    zero: float = 0.0
    band: tuple[float, ...] = ()


def score_table(study: Study) -> ScoreTable:
    """Make the table from a study's metrics."""
    if study.why_no_scores is not None:
        return ScoreTable(study.why_no_scores)
    entries: Sequence[Mapping[str, Any]] = study.metrics.get("map_scores") or []
    if not entries:
        return ScoreTable("There is no error, so there is no map to score.")
    ends: list[float] = [0.0, *(end for entry in entries for end in entry["interval"] or [])]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(_MARGIN + (value - low) / span * (BAR_WIDTH - 2 * _MARGIN), 2)

    rows = tuple(
        ScoreRow(
            method=_title(entry), layer="" if is_control(entry) else entry["layer"],
            score=_number(entry["combined"]),
            interval=" to ".join(_number(end) for end in entry["interval"] or []),
            morf=_number(entry["morf"]), lerf=_number(entry["lerf"]), n=entry["n"], against=_AGAINST[entry["verdict"]],
            bar=tuple(place(v) for v in (entry["combined"], *entry["interval"])) if entry["interval"] else (),
        )
        for entry in entries
    )  # fmt: skip
    noise = next(entry for entry in entries if is_control(entry, NOISE))
    band = tuple(place(end) for end in noise["interval"] or [])
    return ScoreTable(None, _lead(study, noise), tuple(_findings(entries)), rows, place(0.0), band)


def _lead(study: Study, noise: Mapping[str, Any]) -> str:
    errors, n = int(study.metrics["errors"]), noise["n"]
    chosen = f"all {errors:,} errors" if n == errors else f"{n:,} of {errors:,} errors, drawn with seed {SEED},"
    chosen = "the one error" if n == errors == 1 else chosen
    shares = [f"{share:g}" for share in noise["percentiles"]]
    return (
        f"How well do the maps rank pixels? In {chosen} the pixels that a map ranks highest were removed, then those "
        f"that it ranks lowest: {', '.join(shares[:-1])} and {shares[-1]}% of them, filled in from their neighbors "
        "with a little noise (ROAD; Rong et al., 2022). Printed is the mean probability of the predicted class "
        f"afterwards; before, it is {noise['before']:.3f}. The score is half the difference, LeRF − MoRF: noise has "
        "0 on average."
    )


def _findings(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    maps = [entry for entry in entries if not is_control(entry)]
    above, below, unclear = (
        [entry for entry in maps if entry["verdict"] == verdict] for verdict in ("above", "below", "unclear")
    )
    out = []
    if above:
        out.append(f"{_names(above, maps)}: better than noise. The interval lies above the noise control’s.")
        center = next(entry["interval"] for entry in entries if is_control(entry, CENTER))
        both = [entry for entry in above if center is not None and entry["interval"][0] > center[1]]
        which = f"{_names(both, maps)}: better than the center control as well" if both else (
            "No interval lies above the center control’s: not told apart from pointing at the middle of every image"
        )  # fmt: skip
        out.append(f"{which}.")
    if unclear:
        few = ", or there are too few images for one" if any(not entry["interval"] for entry in entries) else ""
        out.append(f"{_names(unclear, maps)}: not told apart from noise. The intervals overlap{few}.")
    if below:
        out.append(f"{_names(below, maps)}: worse than noise. The interval lies below the noise control’s.")
    lost = sum(entry["unranked"] for entry in maps)
    if lost:
        out.append(f"{lost:,} map{'s hold' if lost > 1 else ' holds'} values that are not finite: without an order of "
                   "pixels there is no score, and n is smaller.")  # fmt: skip
    return out


def _names(some: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> str:
    if len(some) > NAMED:
        return f"{len(some)} of {len(every)} maps (see the table)"
    layers: dict[str, list[str]] = {}
    for entry in some:
        layers.setdefault(_title(entry), []).append(entry["layer"])
    return "; ".join(f"{title} at {_list(names)}" for title, names in layers.items())


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _title(entry: Mapping[str, Any]) -> str:
    return _CONTROLS[entry["method"]] if is_control(entry) else method_note(entry["method"])["title"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")
