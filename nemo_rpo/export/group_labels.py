"""The preferences of one group of taste as data: a label a pair, with the probability that it is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from nemo_rpo.conversion.layouts import records_of
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.rows import Vote
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.export.cleaned import Cleaning, ExportSettings
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import Source, SourcePair


def check_group(run: Run, group: int | None) -> int:
    """The ``group`` as an index from 0.

    Raises:
        ConfigError: none was named, or the run has no such group. DataError: the run has one truth for all.
    """
    groups = run.labels.w_of_group.shape[1]
    if not groups:
        raise DataError(f"{run.folder} has one truth for all annotators: groups come from model.rpo.base_loss=pal")
    if group is None or not 1 <= group <= groups:
        raise ConfigError(f"--group must be a number from 1 to {groups}, the groups of {run.folder}; got {group}")
    return group - 1


def write_group_labels(
    run: Run, source: Source, group: int, out: Path, settings: ExportSettings, overwrite: bool = False
) -> Cleaning:
    """Writes every pair of ``source`` that the run has seen, labelled as ``group`` (from 0) prefers it.

    The one label of a pair is of an annotator ``group 1``, …, and its row has a ``weight``, the probability that it is
    right. Which annotators said what is not written, and a gold answer neither: it is of no group.

    Raises:
        ConfigError: settings, or an ``out`` that cannot be written. DataError: the data is not the run's.
    """
    settings.check()
    found = Cleaning()
    with record_writer(out, overwrite) as write:
        for pair in source:
            w = preference(run, pair, group)
            if w is None:
                found.lost["pairs that the run was not trained on"] += 1
                continue
            vote = Vote(f"group {group + 1}", 1 if w >= 0.5 else -1)
            lost: Counter[str] = Counter()
            for fields in records_of(replace(pair.merged, votes=[vote], gold=None), settings.to, lost):
                write({**fields, "weight": round(max(w, 1 - w), 6)})
                found.written += 1
            found.lost += lost
            found.done["turned round for this group" if _majority(pair) * vote.sign < 0 else "as most labels say"] += 1
    return found


def preference(run: Run, pair: SourcePair, group: int) -> float | None:
    """Probability that ``pair.merged.first`` is the better response for the group; None where the run has not seen it.

    The record is relative to its own chosen response, which a label's two signs tell apart from ``first``.
    """
    if not len(pair.labels):
        return None
    row = int(pair.labels[0])
    w = float(run.labels.w_of_group[row, group])
    first_vote = next(vote for vote in pair.merged.votes if vote.sign)
    same = first_vote.sign * int(run.labels.sign[row]) > 0
    return None if np.isnan(w) else w if same else 1 - w


def _majority(pair: SourcePair) -> int:
    return sum(vote.sign for vote in pair.merged.votes)
