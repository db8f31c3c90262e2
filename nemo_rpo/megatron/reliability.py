"""The EM of a run on this rank: the estimator that the configuration asks for, with the engine's collectives."""

from __future__ import annotations

import torch

from nemo_rpo.data.cache import PreferenceCache
from nemo_rpo.em import AnnotatorReliability, BufferedReliability, Collectives, EMSettings, MarginBuffer, Votes
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.statistics import gather_over_data_parallel, sum_over_data_parallel

COLLECTIVES = Collectives(sum_over_data_parallel, gather_over_data_parallel)


def build_reliability(settings: EMSettings, cache: PreferenceCache, device: torch.device) -> AnnotatorReliability:
    """The reliabilities of the annotators of ``cache``, all at their start.

    ``estimator: buffer`` takes 4 bytes a pair and 5 a vote of this rank's block of the pairs. No collective.
    """
    annotators = len(cache.annotators)
    if settings.estimator == AnnotatorReliability.estimator:
        return AnnotatorReliability(annotators, settings, device)
    buffer = MarginBuffer(len(cache), parallel.data_parallel_rank(), parallel.data_parallel_size(), device)
    votes = Votes(*map(torch.from_numpy, cache.vote_matrix(buffer.block)))
    return BufferedReliability(annotators, settings, buffer, votes, COLLECTIVES, device)
