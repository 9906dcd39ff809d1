"""A run, to look at: one self-contained HTML file from what the run wrote. Starts nothing and needs no network."""

from __future__ import annotations

import os
from pathlib import Path

from rlreason.report.page import page_html
from rlreason.report.read import read_run

__all__ = ["write"]


def write(run: Path) -> Path:
    """Write `run`/report.html and return its path. The same run gives the same bytes, whenever it is written.

    `run` is a run's folder, finished or still going, or a pipeline's. A reader never sees half a page: it is renamed
    into place. FileNotFoundError if there is no such folder; ValueError, with file and line, if metrics, events, answers
    or a summary are broken other than by the end of a killed run. Of a stage's other files the page says which it left out.
    """
    run = Path(run).resolve()
    text = page_html(read_run(run))
    path, half = run / "report.html", run / f".report.html.{os.getpid()}"
    try:
        half.write_text(text, "utf-8")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)  # there still only if writing failed
    return path
