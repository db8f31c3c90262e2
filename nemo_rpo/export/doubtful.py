"""Doubtful labels for an annotation tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.data.rows import Vote
from nemo_rpo.errors import DataError
from nemo_rpo.export.tables import write_table
from nemo_rpo.report.doubt import most_doubtful
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import Source, SourcePair
from nemo_rpo.report.texts import as_text

RELABEL, BY = "relabel", "relabelled_by"


def write_doubtful(
    run: Run, source: Source, out: Path, limit: int, threshold: float, blind: bool = False, overwrite: bool = False
) -> int:
    """Writes up to ``limit`` labels, the most doubtful first and one a pair, whose probability of being right is below
    ``threshold``; returns how many.

    Fields: ``label_id`` (the label's row in ``posteriors.parquet``), ``pair_id``, ``prompt``, ``response_a``,
    ``response_b`` (in the order of the data), ``relabel`` (empty, for ``a``, ``b``, ``tie``), ``relabelled_by``
    (empty). Unless ``blind``, also ``annotator``, ``label`` (what they said), ``probability_wrong`` and
    ``model_prefers``: those who see them will lean on them.

    Raises:
        ConfigError, DataError: as :func:`write_table`, no label is below ``threshold``, or the data is not the run's.
    """
    rows = most_doubtful(run.labels, limit)
    rows = rows[run.labels.w_last[rows] < threshold]
    if not len(rows):
        raise DataError(
            f"no label of {run.folder} is less likely than {threshold:g} to be right: there is nothing to look at "
            "again; raise --threshold to see more"
        )
    place = {row: n for n, row in enumerate(rows.tolist())}
    found: dict[int, dict[str, Any]] = {}
    for pair in source:
        signed = [vote for vote in pair.merged.votes if vote.sign]
        for row, vote in zip(pair.labels.tolist(), signed, strict=False):
            if row in place:
                if pair.merged.alone:
                    raise DataError(
                        f"{pair.merged.where}: a completion judged alone, and the table of doubtful labels is one of "
                        "pairs: nemo-rpo export RUN data --wrong drop --to unpaired leaves them out"
                    )
                found[place[row]] = _fields(run, pair, row, vote, blind)
    return write_table((found[n] for n in range(len(found))), out, overwrite)


def _fields(run: Run, pair: SourcePair, row: int, vote: Vote, blind: bool) -> dict[str, Any]:
    labels = run.labels
    # Δ is of the pair's chosen response; a label's sign tells which of the two that is, and so does its vote.
    for_first = np.sign(labels.delta_last[row] * labels.sign[row]) * vote.sign
    fields = {
        "label_id": row,
        "pair_id": pair.key,
        "prompt": as_text(pair.merged.prompt),
        "response_a": as_text(pair.merged.first),
        "response_b": as_text(pair.merged.second),
        RELABEL: "",
        BY: "",
    }
    if not blind:
        fields |= {
            "annotator": vote.annotator,
            "label": "a" if vote.sign > 0 else "b",
            "probability_wrong": round(float(1 - labels.w_last[row]), 6),
            "model_prefers": "a" if for_first > 0 else "b" if for_first < 0 else "neither",
        }
    return fields
