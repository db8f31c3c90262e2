"""Settings of linear Bradley-Terry models, and the only place for their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["logistic", "lda"]


@dataclass(frozen=True)
class FactorSettings:
    """How strengths of properties are fitted and shown.

    Attributes:
        ridge: λ of ½ λ ‖θ‖² on standardised differences: each strength has the prior N(0, 1/λ). At 1 it weighs like a
            handful of labels, and keeps strengths finite where a property decides every label.
        fewest: labels on one side (believed or distrusted) below which nothing is fitted to it.
        fewest_prompts: prompts from which labels of one prompt are taken as hanging together in the intervals (answers
            to it may stand in many pairs); with fewer, those of one pair.
    """

    ridge: float = 1.0
    fewest: int = 30
    fewest_prompts: int = 20


@dataclass(frozen=True)
class HeldOutSettings:
    """How a linear model foretells pairs that it was not trained on.

    Attributes:
        folds: parts of the pairs; each is foretold by a fit to the others.
        ridges: values of λ tried, the largest first; the one under which labels of a further part are the likeliest.
        seed: of the division into parts.
    """

    folds: int = 5
    ridges: tuple[float, ...] = (1e4, 1e3, 1e2, 1e1, 1.0)
    seed: int = 0
