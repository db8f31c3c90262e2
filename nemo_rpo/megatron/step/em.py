"""The EM of a run on this rank: the estimator that the configuration asks for, with the engine's collectives."""

from __future__ import annotations

import torch

from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.em import (
    AnnotatorReliability,
    Collectives,
    PairRecord,
    RecordedReliability,
    Votes,
    build_estimator,
)
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.step.collectives import gather_over_data_parallel, sum_over_data_parallel

COLLECTIVES = Collectives(sum_over_data_parallel, gather_over_data_parallel)


def build_reliability(
    rpo: RPOConfig, cache: PreferenceCache, device: torch.device
) -> AnnotatorReliability | RecordedReliability:
    """The reliabilities of the annotators of ``cache``, all at their start; recorded where ``rpo.record`` asks for it.

    ``estimator: buffer`` takes 4 bytes a pair and 5 a vote of this rank's block of the pairs, the record 12 bytes a
    pair. No collective.
    """
    em = estimator_of(rpo, cache, device)
    if not (rpo.enabled and rpo.record):
        return em
    pairs = PairRecord(len(cache), parallel.data_parallel_rank(), parallel.data_parallel_size(), device)
    return RecordedReliability(em, pairs, COLLECTIVES)


def estimator_of(rpo: RPOConfig, cache: PreferenceCache, device: torch.device) -> AnnotatorReliability:
    """``rpo.estimator`` over the annotators and pairs of ``cache``, at its start. No collective."""

    def votes_of(block: slice) -> Votes:
        share = cache.share_of_ranking(block)
        labels = map(torch.from_numpy, cache.vote_matrix(block))
        return Votes(*labels, None if share is None else torch.from_numpy(share))

    return build_estimator(
        rpo,
        len(cache.annotators),
        len(cache),
        votes_of,
        parallel.data_parallel_rank(),
        parallel.data_parallel_size(),
        COLLECTIVES,
        device,
    )
