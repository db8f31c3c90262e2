"""Did it help? A run against the one with the plain loss beside it, on the held-out labels of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.judgements import Comparison, compare
from nemo_rpo.evaluation.scores import Scores
from nemo_rpo.report.rendering.document import Note
from nemo_rpo.report.run import Run, read_run
from nemo_rpo.text_table import format_table

RESAMPLES, SEED = 1000, 0
_FEW_PROMPTS = 30


def compare_runs(ours: Path, plain: Path) -> Comparison:
    """Paired over the held-out labels of two finished runs, by gold labels where there are any.

    Raises:
        DataError: a folder is no run, has no held-out labels, or the two have none in common.
    """
    return compare_read(read_run(ours), read_run(plain))


def compare_read(ours: Run, plain: Run) -> Comparison:
    """:func:`compare_runs` of runs that were read already."""
    return compare(_held_out(ours), _held_out(plain), RESAMPLES, SEED)


def sign_of(comparison: Comparison) -> int:
    """+1 where the robust run is surely better, -1 where it is surely worse, else 0: by whether the interval of the
    difference leaves out 0.
    """
    gain = comparison.differences["accuracy"]
    return int(gain.low > 0) - int(gain.high < 0)


def did_it_help(comparison: Comparison) -> str:
    """The sentence that the comparison comes to."""
    said, size = _SAID[sign_of(comparison)], _size(comparison)
    return f"{said}: {size} against the plain loss at the same settings. {_advice(comparison)}".rstrip()


def note_beside_plain(run: Run, comparison: Comparison, plain: Run) -> Note:
    """For the first lines of the report of ``run``."""
    sign = sign_of(comparison)
    text = f"{_size(comparison)} against {plain.folder}, the plain loss at the same settings."
    if plain.step != run.step:
        text += f" (That run took {plain.step:,} steps, this one {run.step:,}.)"
    said = {1: "Keep this one.", 0: _advice(comparison), -1: f"Keep the plain one: {plain.folder}."}[sign]
    return Note(f"Did it help? {_SAID[sign]}", text, said, good=sign > 0)


_SAID = {1: "It helped", -1: "It hurt", 0: "No difference can be told"}


def _size(comparison: Comparison) -> str:
    gain = comparison.differences["accuracy"]
    return (
        f"{gain.value:+.1%} of {counted(comparison.labels, 'held-out label')} right ({gain.low:+.1%} to "
        f"{gain.high:+.1%})"
    )


def _advice(comparison: Comparison) -> str:
    sign = sign_of(comparison)
    if sign:
        return "Keep the plain one." if sign < 0 else ""
    if comparison.prompts < _FEW_PROMPTS:
        return (
            f"The labels are of {counted(comparison.prompts, 'prompt')}, and it is prompts that count: hold out more."
        )
    return "More held-out labels, or gold ones, would tell."


def as_text(comparison: Comparison, ours: Path, plain: Path) -> str:
    """For a terminal."""
    rows = [
        [name, f"{found.value:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}"]
        for name, found in comparison.differences.items()
    ]
    table = format_table([f"{ours} less {plain}", "difference", "95 % interval"], rows)
    labels, prompts = counted(comparison.labels, "label"), counted(comparison.prompts, "prompt")
    return (
        f"{did_it_help(comparison)}\n\n{table}\n{labels} of {prompts}; "
        f"right where the plain one is not: {comparison.won:,}, the other way round: {comparison.lost:,}; p = "
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
