"""What a run's gold labels say of its estimates, and who changed over the own sequence of labels: asked at its end.

Shapes: P pairs, K annotators, T places in a sequence.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.anchors import Judged, judge
from nemo_rpo.em.label_model.choose import Fitter, columns_of_pairs, free_means, order_shown
from nemo_rpo.em.label_model.coded_votes import SKILL, SLOT, FlatVotes, VoteFeatures, VoteTable
from nemo_rpo.em.label_model.drift import Drift, fit_drift
from nemo_rpo.em.label_model.features import SEQUENCE
from nemo_rpo.em.label_model.label_model_fit import fit_label_model
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import PairPrior
from nemo_rpo.em.label_model.reported import ANCHORS, MAJORITY
from nemo_rpo.em.label_model.shared_errors.exchangeable import exchangeable_votes

POLICY, ALONE = "EM with the policy", "EM without a model"


class LookBack(NamedTuple):
    """What was found at the end of a run.

    Attributes:
        judged: by estimate, on gold labels; empty with too few.
        drift: of the ``annotators`` (int64 [K]), in its order; None where the data know no times.
    """

    judged: dict[str, Judged]
    drift: Drift | None
    annotators: Tensor


def judge_estimates(
    table: VoteTable, margin: Tensor, gold: Tensor, as_evidence: bool, shares: Collection[str]
) -> dict[str, Judged]:
    """Majority, anchor-weighted vote, EM without a model and with the policy, side by side on ``gold`` labels.

    Cross-fitted: no gold label is evidence where it judges. The policy's margins have to be from before it was trained
    on their pairs, or it would know what was said of them. On the CPU, on each rank for itself.

    Args:
        table: votes, with the features in force.
        margin: float64 [P], the policy's log-odds for chosen; 0 where it said nothing.
        gold: float64 [P], +1 chosen is better, -1 rejected is, 0 not known.
        as_evidence: whether the EMs are told the gold labels that do not judge, as the run was.
        shares: by which the truth goes with a column, those that are fitted.
    """
    settings, nothing, columns = LabelModelSettings(), torch.zeros_like(margin), columns_of_pairs(table)
    anchors = int((gold != 0).sum())
    if anchors < settings.min_anchors:
        return {}
    order = order_shown(columns[SLOT], settings) if SLOT in columns else None
    free, majority = free_means(table, order, anchors * as_evidence, settings), exchangeable_votes(table).w

    def estimates(known: Tensor) -> dict[str, Tensor]:
        told = known if as_evidence else nothing
        with_policy, without = (Fitter(PairPrior(of, told, columns), free, settings) for of in (margin, nothing))
        return {
            MAJORITY: majority,
            ANCHORS: Fitter(PairPrior(nothing, known, columns), free, settings).from_anchors(table).w,
            ALONE: without.fit(table, shares, []).believed,
            POLICY: with_policy.fit(table, shares, []).believed,
        }

    return judge(gold, estimates, settings.folds, POLICY, False).judged


def drift_of(table: VoteTable, margin: Tensor, gold: Tensor) -> tuple[Drift | None, Tensor]:
    """Drift of the annotators in ``table``, which has all features of the data, and who they are."""
    present, annotator = torch.unique(table.annotator, return_inverse=True)
    if SEQUENCE not in table.names:
        return None, present
    votes = FlatVotes(table.pair, annotator, table.sign(), table.num_pairs)
    columns = {name: table.design[:, j] for j, name in enumerate(table.names) if name != SKILL}
    skills = set(table.names[: table.num_skill])
    features = VoteFeatures(
        {name: of for name, of in columns.items() if name in skills},
        {name: of for name, of in columns.items() if name not in skills},
    )
    known = gold if (gold != 0).any() else None
    fit = fit_label_model(votes, len(present), features, known, margin=margin, settings=LabelModelSettings(bootstrap=0))
    return fit_drift(votes, len(present), features, fit), present
