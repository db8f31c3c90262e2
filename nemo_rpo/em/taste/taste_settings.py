"""The settings of groups of taste, and the only place for their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings


@dataclass(frozen=True)
class TasteSettings:
    """How groups of taste are fitted and their number is chosen.

    Attributes:
        folds: parts of the votes; each is predicted by a fit to the others.
        min_gain: nats of held-out log-likelihood, over all votes, that a further group has to bring.
        gain_errors: standard errors (over annotators) that the gain has to exceed, besides.
        min_labels: labels on shared pairs (pairs that others voted on as well) with which an annotator can be placed.
        min_annotators: annotators with so many labels, for every group tried.
        differ: share of pairs on which a group's truth is expected to differ from the base, before any vote is seen.
        differ_pairs: what this expectation counts for, in pairs.
        iterations: of the EM, at most.
        tolerance: it ends once no membership moves by more.
        part: first iterations, in which the share of pairs with different truths stays at ``differ``.
        hold: first iterations, in which memberships stay where they start.
        screen: iterations of the short fits that starts are compared by.
        kept: starts that are fitted to the end.
        search_votes: votes on which the number of groups is chosen at most; of a larger crowd, a part of the pairs.
        label_model: of one truth: prior of skills, which features.
    """

    folds: int = 4
    min_gain: float = 3.0
    gain_errors: float = 2.0
    min_labels: int = 5
    min_annotators: int = 3
    differ: float = 0.3
    differ_pairs: float = 10.0
    iterations: int = 80
    tolerance: float = 1e-3
    part: int = 20
    hold: int = 2
    screen: int = 10
    kept: int = 2
    search_votes: int = 200_000
    label_model: LabelModelSettings = field(default_factory=LabelModelSettings)
