"""Whose taste a reward model with several groups is judged by."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.training.outputs.results import ANNOTATOR_CSV, weight_names


def weights_for(target: Target, groups: int, annotators: Sequence[str], group: int | None) -> Tensor:
    """Weights float64 [K, G] of the ``annotators`` of the data to be judged: all on ``group`` (from 1) where one is
    named, else what the run has learnt of each, and the mean of them for whoever it does not know.

    Raises:
        ConfigError: no such group, or no run to take weights from.
    """
    if group is not None:
        if not 1 <= group <= groups or groups == 1:
            has = f"has groups 1 to {groups}" if groups > 1 else "has one truth for all"
            raise ConfigError(f"--group={group}, but {target.weights} {has}: name another group, or none")
        return torch.eye(groups, dtype=torch.float64)[group - 1].expand(len(annotators), groups)
    places = (folder / ANNOTATOR_CSV for folder in (target.weights.parent, target.weights.parent.parent))
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"{target.weights} is not in the folder of a run, so nothing says which group an annotator belongs to: "
            f"name a group with --group=1 to {groups}"
        )
    with found.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = weight_names(groups)
    if not rows or names[-1] not in rows[0] or weight_names(groups + 1)[-1] in rows[0]:
        raise ConfigError(f"{found} has no weights of {groups} groups: name a group with --group")
    known = {row["id"]: [float(row[name]) for name in names] for row in rows}
    mean = torch.tensor(list(known.values()), dtype=torch.float64).mean(0).tolist()
    return torch.tensor([known.get(name, mean) for name in annotators], dtype=torch.float64)
