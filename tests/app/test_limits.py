"""The limits are documented as they are."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from whycam.app.limits import Limits
from whycam.app.live_explainer import MAX_PIXELS

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_documented_defaults():
    rows = re.findall(r"^\| .* \| `(\w+)` \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert {name: float(number.replace(",", "")) for name, number in rows} == asdict(Limits())
    assert f"{MAX_PIXELS:,} pixels" in PAGE
