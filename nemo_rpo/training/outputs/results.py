"""``annotators.csv``: what a run leaves behind of its annotators for people and other programs."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from nemo_rpo.training.outputs.summary import AnnotatorRow

ANNOTATOR_CSV = "annotators.csv"


def write_annotators(folder: Path, rows: Sequence[AnnotatorRow]) -> None:
    """``annotators.csv``, one line an annotator in the data's order: id, labels, η, its standard error (empty where no
    sweep or refit has been), and the running η before the last sweep.
    """
    path = folder / ANNOTATOR_CSV
    writing = path.with_name(f".writing-{path.name}")
    with writing.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "labels", "eta", "standard_error", "eta_running"])
        for row in rows:
            error = "" if math.isnan(row.standard_error) else f"{row.standard_error:.6f}"
            out.writerow([row.annotator, row.labels, f"{row.eta:.6f}", error, f"{row.running:.6f}"])
    os.replace(writing, path)
