"""The estimator that the settings ask for, for the engine and for every host."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nemo_rpo.em.buffer import BufferedReliability, MarginBuffer
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.label_model.in_training import RunLabelModel
from nemo_rpo.em.label_model.training_crowd import Crowd
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
    """
    if settings.estimator == AnnotatorReliability.estimator:
        return AnnotatorReliability(num_annotators, settings, device)
    buffer = MarginBuffer(num_pairs, rank, world_size, device)
    em = BufferedReliability(num_annotators, settings, buffer, votes_of(buffer.block), collectives, device)
    if settings.label_model.enabled and crowd_of is not None:
        model = RunLabelModel(
            crowd_of(), num_annotators, buffer.block, settings.label_model, em.collectives, settings.eta_bounds, device
        )
        em.label_model = model if model.useful else None
    return em
