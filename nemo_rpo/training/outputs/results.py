"""``annotators.csv`` and ``label_model.json``: what a run leaves behind of its annotators for people and programs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import CheckpointError
from nemo_rpo.training.outputs.summary import AnnotatorRow

ANNOTATOR_CSV, LABEL_MODEL_JSON = "annotators.csv", "label_model.json"
NO_ROOM = "see that its disk has room and start again"


def write_annotators(folder: Path, rows: Sequence[AnnotatorRow]) -> None:
    """``annotators.csv``, one line an annotator in the data's order: id, labels, η, its standard error (empty where no
    sweep or refit has been), and the running η before the last sweep; with a label model in force ``skill`` and every
    leaning or feature by its name, each with ``…_error``; of a run with groups of taste ``weight_1``, …, the weight on
    each; where any answers of an earlier run counted too, ``carried``. Raises :class:`CheckpointError` if it cannot be
    written.
    """
    place = whole_file(folder / ANNOTATOR_CSV, CheckpointError, NO_ROOM)
    with place as writing, writing.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = list(rows[0].coefficients) if rows else []
        more = [column for name in names for column in (name, f"{name}_error")]
        groups = weight_names(len(rows[0].weights) if rows else 0)
        carried = ["carried"] if any(row.carried for row in rows) else []
        out.writerow(["id", "labels", "eta", "standard_error", "eta_running", *more, *groups, *carried])
        for row in rows:
            error = "" if math.isnan(row.standard_error) else f"{row.standard_error:.6f}"
            known = [f"{value:.6f}" for name in names for value in row.coefficients[name]]
            weights = [f"{weight:.6f}" for weight in row.weights]
            last = [f"{row.carried:.3f}" for _ in carried]
            columns = [row.annotator, row.labels, f"{row.eta:.6f}", error, f"{row.running:.6f}"]
            out.writerow([*columns, *known, *weights, *last])


def weight_names(groups: int) -> list[str]:
    """Names of the columns of annotators' weights on ``groups`` groups."""
    return [f"weight_{g}" for g in range(1, groups + 1)]


def write_label_model(folder: Path, choice: Mapping[str, Any]) -> None:
    """``label_model.json``: ``features`` in force, the ``reasons`` of the last choice, its ``warnings`` (``guard``,
    ``text``), the ``temperature`` of the votes' evidence, and whether the ``majority`` is believed instead; of a
    finished run ``judged``, estimates side by side on gold labels (``right``, ``low``, ``high``, ``anchors``), and
    ``drift`` (:meth:`Drift.to_dict`), where the data have gold labels and times. Raises :class:`CheckpointError` if it
    cannot be written.
    """
    with whole_file(folder / LABEL_MODEL_JSON, CheckpointError, NO_ROOM) as writing:
        writing.write_text(json.dumps(choice, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
