"""The weight of every annotator, for whoever counts votes elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

from nemo_rpo.export.tables import write_table
from nemo_rpo.report.run import Run
from nemo_rpo.shares import logit_interval


def write_annotator_weights(run: Run, out: Path, overwrite: bool = False) -> int:
    """Writes ``annotator``, ``labels``, ``eta``, ``low``, ``high`` (95 %, empty where nothing was fitted) and
    ``weight``, the least reliable first; returns the number of rows.

    ``weight`` is log(η/(1-η)): summed over the votes of a pair, with the sign of each, and added to the model's Δ, it
    gives the log-odds of the pair. An annotator below one half has a negative one.
    """
    annotators = run.annotators
    low, high = logit_interval(annotators.eta, annotators.standard_error)
    rows = [
        {
            "annotator": annotators.id[k],
            "labels": int(annotators.labels[k]),
            "eta": _rounded(annotators.eta[k]),
            "low": _rounded(low[k]),
            "high": _rounded(high[k]),
            "weight": _rounded(math.log(annotators.eta[k] / (1 - annotators.eta[k]))),
        }
        for k in annotators.ranked.tolist()
    ]
    return write_table(rows, out, overwrite)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
