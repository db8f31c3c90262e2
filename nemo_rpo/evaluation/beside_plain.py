"""Did it help? A run against the one with the plain loss beside it, on the held-out labels of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.judgements import Comparison, compare
from nemo_rpo.evaluation.scores import Scores
from nemo_rpo.report.run import Run, read_run
from nemo_rpo.text_table import format_table

RESAMPLES, SEED = 1000, 0


def compare_runs(ours: Path, plain: Path) -> Comparison:
    """Paired over the held-out labels of two finished runs, by gold labels where there are any.

    Raises:
        DataError: a folder is no run, has no held-out labels, or the two have none in common.
    """
    return compare(_held_out(read_run(ours)), _held_out(read_run(plain)), RESAMPLES, SEED)


def did_it_help(comparison: Comparison) -> str:
    """The sentence that the comparison comes to."""
    gain = comparison.differences["accuracy"]
    size = f"{gain.value:+.1%} of {comparison.labels:,} held-out labels right ({gain.low:+.1%} to {gain.high:+.1%})"
    if gain.low > 0:
        return f"It helped: {size} against the plain loss at the same settings."
    if gain.high < 0:
        return f"It hurt: {size} against the plain loss at the same settings. Keep the plain one."
    return (
        f"No difference can be told: {size} against the plain loss at the same settings. More held-out labels, or gold "
        "ones, would tell."
    )


def as_text(comparison: Comparison, ours: Path, plain: Path) -> str:
    """For a terminal."""
    rows = [
        [name, f"{found.value:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}"]
        for name, found in comparison.differences.items()
    ]
    table = format_table([f"{ours} less {plain}", "difference", "95 % interval"], rows)
    return (
        f"{did_it_help(comparison)}\n\n{table}\n{comparison.labels:,} labels of {comparison.prompts:,} prompts; right "
        f"where the plain one is not: {comparison.won:,}, the other way round: {comparison.lost:,}; p = "
        f"{comparison.p_value:.4f} (permutation test)"
    )


def _held_out(run: Run) -> Scores:
    found = run.held_out
    if found is None:
        raise DataError(
            f"{run.folder} has no held-out labels to compare by: give model.data.data_prefix.validation, or compare on "
            f"a file of your own, nemo-rpo evaluate {run.folder} TEST.jsonl --beside OTHER_RUN"
        )
    # Without names: both runs read the same files, so a label has the same place among those of its pair in both.
    nobody = np.full(len(found.sign), "")
    return Scores(found.pair_id, nobody, found.prompt, found.sign, found.gold, found.delta)
