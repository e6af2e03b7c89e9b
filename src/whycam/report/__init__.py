"""Study folder → figures and one self-contained HTML report."""

from __future__ import annotations

from whycam.report.html import BUDGET, write_report

__all__ = ["BUDGET", "write_report"]
