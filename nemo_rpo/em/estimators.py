"""The estimator that the settings ask for, for the engine and for every host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_rpo.em.belief import Belief
from nemo_rpo.em.buffer import BufferedReliability, MarginBuffer
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.label_model.member import KNOWN
from nemo_rpo.em.label_model.of_run.run_label_model import RunLabelModel
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd
from nemo_rpo.em.reliability import AnnotatorReliability
from nemo_rpo.em.votes import Votes


def build_estimator(
    settings: EMSettings,
    num_annotators: int,
    num_pairs: int,
    votes_of: Callable[[slice], Votes],
    rank: int = 0,
    world_size: int = 1,
    collectives: Collectives | None = None,
    device: torch.device | str = "cpu",
    crowd_of: Callable[[], Crowd] | None = None,
    belief: Belief | None = None,
) -> AnnotatorReliability:
    """Reliabilities of K annotators, all at their start. No collective.

    ``ema`` takes 44 bytes an annotator. ``buffer`` takes beside that 4 bytes a pair and what its votes take, of this
    rank's block of the pairs; with a label model about 30 + 4 d bytes a vote of the block for d features, and 4 bytes a
    pair of all pairs once it is in force.

    Args:
        settings: ``estimator`` names the kind.
        num_annotators: K. num_pairs: pairs of the training data.
        votes_of: the labels of a run of pairs [b, V]; only ``buffer`` calls it, once, for this rank's block.
        rank, world_size: of the ranks that hold different pairs. collectives: over them.
        device: where η, sums and margins live.
        crowd_of: all that the data say of votes and pairs; only ``buffer`` with ``label_model`` calls it, once. None
            where that is not known.
        belief: what is known of the annotators already.
    """
    if settings.estimator == AnnotatorReliability.estimator:
        return AnnotatorReliability(num_annotators, settings, device, belief)
    buffer = MarginBuffer(num_pairs, rank, world_size, device)
    em = BufferedReliability(num_annotators, settings, buffer, votes_of(buffer.block), collectives, device, belief)
    if not settings.label_model.enabled or crowd_of is None:
        return em
    crowd = crowd_of()
    if settings.freeze_eta:
        em.pair_evidence = _with_gold(em, crowd) if settings.label_model.gold else None
        return em
    model = RunLabelModel(
        crowd,
        num_annotators,
        buffer.block,
        settings.label_model,
        em.collectives,
        settings.eta_bounds,
        device,
        em.belief.known,
    )
    em.label_model = model if model.useful else None
    return em


def _with_gold(em: BufferedReliability, crowd: Crowd) -> Tensor | None:
    """The evidence of all pairs, float32 [N], at reliabilities that stay as they are, gold labels being certain; None
    where there are none.
    """
    if crowd.gold is None or not crowd.gold.any():
        return None
    votes = crowd.votes
    of_votes = votes.sign.double() * torch.logit(em.eta).cpu()[votes.annotator]
    evidence = torch.zeros(votes.num_pairs, dtype=torch.float64).index_add_(0, votes.pair, of_votes)
    gold = crowd.gold.double()
    return torch.where(gold != 0, gold * KNOWN, evidence).float().to(em.eta.device)
