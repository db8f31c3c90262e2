"""What a run leaves behind for people: ``annotators.csv``, and the closing report."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from nemo_rpo.data.annotators import AnnotatorTable
from nemo_rpo.training.summary import AnnotatorRow

ANNOTATOR_CSV = "annotators.csv"


def write_annotators(folder: Path, table: AnnotatorTable, eta: list[float], running: list[float]) -> Path:
    """``annotators.csv``, one line an annotator in the data's order:

    id, labels, η, and the running η before the last sweep.
    """
    path = folder / ANNOTATOR_CSV
    writing = path.with_name(f".writing-{path.name}")
    with writing.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "labels", "eta", "eta_running"])
        for annotator, now, before in zip(table.annotators, eta, running, strict=True):
            out.writerow([annotator.id, annotator.labels, f"{now:.6f}", f"{before:.6f}"])
    os.replace(writing, path)
    return path


def annotator_rows(table: AnnotatorTable, eta: list[float], start: float) -> list[AnnotatorRow]:
    return [AnnotatorRow(a.id, a.labels, value, start) for a, value in zip(table.annotators, eta, strict=True)]
