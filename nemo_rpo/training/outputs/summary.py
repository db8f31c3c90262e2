"""What a person reads at the end: the annotators, the course of the run, and the files."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_rpo.text_table import format_table

_LAST = 10  # a single batch says little about where a run ended
_ENDS = 10  # annotators shown at each end of a long table
_WIDTH = 32  # of an annotator's id


@dataclass(frozen=True)
class AnnotatorRow:
    """One annotator.

    Attributes:
        annotator: id.
        labels: labels in the training data.
        eta: reliability η.
        start: the η it started from.
        standard_error: of ``eta``; nan where nothing has been fitted.
        running: η before the last sweep replaced it.
        coefficients: (coefficient, standard error) by feature of the label model, the skill first; empty while it is
            not in force. The same features in every row.
        weights: on each group of taste; none where there is one truth for all.
        carried: answers of an earlier run that counted beside the labels.
    """

    annotator: str
    labels: int
    eta: float
    start: float
    standard_error: float
    running: float
    coefficients: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    carried: float = 0.0


def annotator_table(annotators: Sequence[AnnotatorRow]) -> str:
    """Id, labels, η and its change, the least reliable first; of many only the ten at each end."""
    ranked = sorted(annotators, key=lambda row: (row.eta, row.annotator))
    cells = [_cells(row) for row in ranked]
    if len(cells) > 2 * _ENDS:
        cells = [*cells[:_ENDS], [f"… {len(cells) - 2 * _ENDS:,} more", "", "", "", ""], *cells[-_ENDS:]]
    return format_table(["annotator", "labels", "η", "±", "change"], cells)


def _cells(row: AnnotatorRow) -> list[str]:
    error = "–" if math.isnan(row.standard_error) else f"{row.standard_error:.3f}"
    return [_short(row.annotator), f"{row.labels:,}", f"{row.eta:.3f}", error, f"{row.eta - row.start:+.3f}"]


def course_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss, accuracy and margin at both ends of the run, from the rows of ``metrics.jsonl``, and how many of its steps
    were skipped, if any.
    """
    train = [row for row in rows if row["split"] == "train"]
    lines = []
    if train:
        last = train[-_LAST:]
        lines.append(_course(f"train, step {train[0]['step']}", train[:1]))
        lines.append(_course(f"train, mean of steps {last[0]['step']} to {last[-1]['step']}", last))
    for split in dict.fromkeys(row["split"] for row in rows if row["split"].split("/")[0] == "val"):
        val = [row for row in rows if row["split"] == split]
        what = f"validation{split.removeprefix('val').replace('/', ' ')}"
        lines += [_course(f"{what}, step {row['step']}", [row]) for row in (val[0], val[-1])[: len(val)]]
    table = format_table(["", "loss", "accuracy", "margin"], lines)
    skipped = sum(bool(row.get("skipped")) for row in train)
    if not skipped:
        return table
    return f"{table}\n{skipped:,} of {len(train):,} steps were skipped: their gradient was NaN or infinite"


def final_report(
    annotators: Sequence[AnnotatorRow],
    metrics: Sequence[Mapping[str, Any]],
    files: Sequence[str | Path],
    run: Path | None = None,
) -> str:
    """The closing text of a run; ``metrics`` are the rows of its ``metrics.jsonl``, ``run`` its folder."""
    parts = []
    if annotators:
        parts.append(f"Annotators ({len(annotators):,}), by reliability η\n{annotator_table(annotators)}")
    if metrics:
        parts.append(f"Course of the run\n{course_table(metrics)}")
    if files:
        parts.append("Files written\n" + "\n".join(f"  {file}" for file in files))
    if run is not None:
        parts.append(f"What next\n{_next(run, bool(annotators))}")
    return "\n\n".join(parts)


def _next(run: Path, em: bool) -> str:
    folder = shlex.quote(str(run))
    commands = [(f"nemo-rpo report {folder}", "one page: what to do first" + ", and whom to believe" * em)]
    if em:
        commands.append((f"nemo-rpo export {folder} doubtful --out relabel.csv", "the labels to look at again"))
    commands.append((f"nemo-rpo evaluate {folder} TEST.jsonl", "how good the policy is on labels it has not seen"))
    width = max(len(command) for command, _ in commands)
    return "\n".join(f"  {command:{width}}  # {says}" for command, says in commands)


def _course(label: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [label, *(_mean([row.get(name) for row in rows]) for name in ("loss", "acc", "margin"))]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.4f}" if known else "–"


def _short(name: str) -> str:
    return name if len(name) <= _WIDTH else name[: _WIDTH - 1] + "…"
