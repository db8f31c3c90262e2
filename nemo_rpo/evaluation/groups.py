"""Groups of annotators judged by themselves."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from nemo_rpo.evaluation.judgements import Estimate, judge
from nemo_rpo.evaluation.scores import Scores
from nemo_rpo.report.groups import read_groups


def by_group(scores: Scores, groups: Path, resamples: int, seed: int) -> list[tuple[str, int, dict[str, Estimate]]]:
    """Name, number of labels and figures of each group of the CSV file that has labels.

    Raises:
        DataError: the file cannot be read, or names nobody who gave a label.
    """
    annotators, place = np.unique(scores.annotator.astype(str), return_inverse=True)
    names, group_of = read_groups(groups, annotators.tolist())
    found = []
    for number, name in enumerate(names):
        rows = group_of[place] == number
        mine = Scores(*(getattr(scores, field.name)[rows] for field in fields(Scores)))
        found.append((name, len(mine), judge(mine, resamples, seed)))
    return found
