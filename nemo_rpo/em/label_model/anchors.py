"""Anchors (pairs whose truth is known) as judges: how many of those held out does each estimate get right?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Judged(NamedTuple):
    """One estimate on held-out anchors.

    Attributes:
        right: share of them, a posterior of exactly ½ being half right.
        low, high: 95 % interval (Wilson).
        anchors: how many judged.
    """

    right: float
    low: float
    high: float
    anchors: int


class Verdict(NamedTuple):
    """What anchors say of the estimates.

    Attributes:
        judged: by estimate.
        best: the estimate to use.
        parted: a sentence where the label model is worse than the best beyond chance; empty otherwise.
    """

    judged: dict[str, Judged]
    best: str
    parted: str


def hold_out(gold: Tensor, folds: int, seed: int = 0) -> list[Tensor]:
    """Masks [P] of anchors that are held out together; every anchor in one of them."""
    anchors = gold.nonzero().squeeze(-1)
    order = anchors[torch.randperm(len(anchors), generator=torch.Generator().manual_seed(seed))]
    return [torch.zeros_like(gold, dtype=torch.bool).index_fill(0, part, True) for part in order.tensor_split(folds)]


def judge(
    gold: Tensor, estimates: Callable[[Tensor], Mapping[str, Tensor]], folds: int, favourite: str, doubted: bool
) -> Verdict:
    """Cross-fitted judgement: ``estimates(gold without a part)`` gives posteriors [P] by name, judged on the part.

    The ``favourite`` is recommended unless another is right more often by a standard error of their difference, or, if
    it is ``doubted`` for other reasons, at all.
    """
    right: dict[str, Tensor] = {}
    for part in hold_out(gold, folds):
        for name, w in estimates(torch.where(part, 0.0, gold)).items():
            answers = right_answers(w, gold)
            right[name] = torch.where(part, answers, right.get(name, torch.zeros_like(answers)))
    anchors = gold != 0
    hits = {name: answers[anchors] for name, answers in right.items()}
    judged = {name: share_right(answers) for name, answers in hits.items()}
    best = max(judged, key=lambda name: (judged[name].right, name == favourite))
    gain = hits[best] - hits[favourite]
    error = gain.std().item() / math.sqrt(len(gain))
    if best != favourite and not doubted and gain.mean().item() < error:
        best = favourite
    parted = ""
    if best != favourite and gain.mean().item() > 1.96 * error:
        parted = (
            f"on held-out anchors {best} is right {judged[best].right:.0%} of the time and {favourite} "
            f"{judged[favourite].right:.0%}: use {best}"
        )
    return Verdict(judged, best, parted)


def right_answers(w: Tensor, gold: Tensor) -> Tensor:
    """1 where a posterior is on the side of the truth, ½ at ½, else 0 [P]; 0 without a truth."""
    answer = torch.where(w == 0.5, 0.5, ((w > 0.5) == (gold > 0)).double())
    return torch.where(gold != 0, answer, 0.0)


def share_right(answers: Tensor) -> Judged:
    """The share, with Wilson's interval.

    >>> round(share_right(torch.ones(40, dtype=torch.float64)).low, 3)
    0.912
    """
    n, share = len(answers), answers.mean().item()
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Judged(share, max(0.0, middle - half), min(1.0, middle + half), n)
