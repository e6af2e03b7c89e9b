"""Figures and report of a study, drawn into its folder."""

from __future__ import annotations

from pathlib import Path

from whycam.progress import Progress, quiet
from whycam.report.figures import write_figures
from whycam.report.html import write_report
from whycam.report.payload import Payload
from whycam.study.folder import FIGURES, REPORT, Study


def publish(study: Study, *, progress: Progress = quiet) -> Path:
    """Draw a study's figures and write its report, into the study folder.

    Args:
        study: a finished study.
        progress: called with (stage, done, total).

    Returns:
        The report's path.

    Raises:
        WhycamError: the folder cannot be written to, or the study is damaged.
    """
    payload = Payload(study)
    write_figures(payload, study.path / FIGURES)
    progress("figures", 1, 1)
    page = write_report(study, study.path / REPORT, payload=payload)
    progress("report", 1, 1)
    return page
