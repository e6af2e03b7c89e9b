"""How an explanation shows itself in a notebook: a figure, and in words what is to be seen on it."""

from __future__ import annotations

import io
from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING

from whycam.errors import WhycamError

if TYPE_CHECKING:
    from torch import Tensor

    from whycam.cam.explanation import Explanation

_SHOWN = 3
_DPI = 110


def explanation_html(explanation: Explanation) -> str:
    """The first images' figures as inline PNG files with text alternatives; nothing is fetched from anywhere.

    What cannot be drawn (a series, say) is named as `repr` does it, with the reason.
    """
    images = len(explanation.logits)
    try:
        figures = [_figure(explanation, index) for index in range(min(images, _SHOWN))]
    except WhycamError as error:
        return f"<pre>{escape(repr(explanation))}</pre><p>{escape(str(error))}</p>"
    rest = images - len(figures)
    more = f"<p>{rest} more image{'' if rest == 1 else 's'}: plot(index) draws any of the {images}.</p>" if rest else ""
    return f"<div>{''.join(figures)}{more}</div>"


def _figure(explanation: Explanation, index: int) -> str:
    buffer = io.BytesIO()
    explanation.plot(index).savefig(buffer, format="png", dpi=_DPI)
    source = b64encode(buffer.getvalue()).decode("ascii")
    words = escape(in_words(explanation, index), quote=True)
    caption = f"Image {index}: {_verdict(explanation, index)}. Native grids; colour bars in raw units."
    return (
        f'<figure style="margin:0 0 1em"><img src="data:image/png;base64,{source}" alt="{words}" '
        f'style="max-width:100%;height:auto"><figcaption>{caption}</figcaption></figure>'
    )


def in_words(explanation: Explanation, index: int) -> str:
    """One image's maps in numbers: grid, raw range, peak and flags of each."""
    flags = explanation.flags
    sentences = [f"Image {index}, {_verdict(explanation, index)}."]
    for key, maps in explanation.maps.items():
        method, layer, target = key
        raw = maps[index].detach()
        said = "".join(f", {flag}" for flag in flags[key][index])
        sentences.append(
            f"{method} at {layer} for {target}: {raw.shape[0]} by {raw.shape[1]} cells, raw range "
            f"{float(raw.min()):.3g} to {float(raw.max()):.3g}{_peak(raw)}{said}."
        )
    return " ".join(sentences)


def _peak(raw: Tensor) -> str:
    finite = raw.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    place = int(finite.argmax())
    if not float(finite.flatten()[place]) > 0:
        return ""
    return f", peak at row {place // raw.shape[1] + 1}, column {place % raw.shape[1] + 1}"


def _verdict(explanation: Explanation, index: int) -> str:
    if explanation.logits.ndim != 2 or not explanation.logits.shape[1]:
        return "no class predicted"
    return f"class {int(explanation.predicted[index])} predicted"
