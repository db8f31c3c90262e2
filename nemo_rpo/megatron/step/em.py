"""The EM of a run on this rank: the estimator that the configuration asks for, with the engine's collectives."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import Tensor

from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.em import (
    AnnotatorReliability,
    Collectives,
    MarginBuffer,
    PairRecord,
    RecordedReliability,
    Votes,
    build_estimator,
)
from nemo_rpo.em.belief import Belief
from nemo_rpo.em.groups import TasteReliability
from nemo_rpo.em.groups.start import random_start, start_of
from nemo_rpo.em.label_model import FlatVotes
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd
from nemo_rpo.errors import TrainingError
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.step.collectives import (
    broadcast_from_first_rank,
    gather_over_data_parallel,
    gather_over_world,
    sum_over_data_parallel,
)

COLLECTIVES = Collectives(sum_over_data_parallel, gather_over_data_parallel, broadcast_from_first_rank)


def build_reliability(
    rpo: RPOConfig,
    cache: PreferenceCache,
    device: torch.device,
    groups: int = 1,
    seed: int = 0,
    belief: Belief | None = None,
) -> AnnotatorReliability | RecordedReliability:
    """The reliabilities of the annotators of ``cache``, at the start that ``belief`` gives them; recorded where
    ``rpo.record`` asks for it. A loss with several ``groups`` has its own estimator, and ``seed`` draws where its
    weights begin.

    ``estimator: buffer`` takes 4 bytes a pair and 5 a vote of this rank's block of the pairs, the record 12 bytes a
    pair. No collective.
    """
    if groups == 1:
        em = estimator_of(rpo, cache, device, belief)
    else:
        em = taste_of(rpo, cache, device, groups, seed)
    if not (rpo.enabled and rpo.record):
        return em
    pairs = PairRecord(len(cache), parallel.data_parallel_rank(), parallel.data_parallel_size(), device)
    return RecordedReliability(em, pairs, COLLECTIVES)


def estimator_of(
    rpo: RPOConfig, cache: PreferenceCache, device: torch.device, belief: Belief | None = None
) -> AnnotatorReliability:
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
        partial(crowd_of, cache),
        belief,
    )


def taste_of(rpo: RPOConfig, cache: PreferenceCache, device: torch.device, groups: int, seed: int) -> TasteReliability:
    """The weights of the annotators of ``cache`` on ``groups`` groups, at their start. One broadcast of 8 G K bytes
    from rank 0: another machine's arithmetic might begin elsewhere.
    """
    rank, ranks = parallel.data_parallel_rank(), parallel.data_parallel_size()
    start, said = random_start(len(cache.annotators), groups, seed), ""
    if rpo.enabled:
        votes = FlatVotes(*map(torch.from_numpy, cache.all_votes()), num_pairs=len(cache))
        start, said = start_of(votes, len(cache.annotators), groups, seed)
    start = start.to(device)
    COLLECTIVES.from_first(start)
    return TasteReliability(
        rpo,
        start,
        signed_labels(cache),
        [MarginBuffer(len(cache), rank, ranks, device) for _ in range(groups)],
        COLLECTIVES,
        device,
        said,
    )


def signed_labels(cache: PreferenceCache) -> Tensor:
    """Labels that take a side, of each annotator, int64 [K]."""
    _, annotator, sign = cache.all_votes()
    return torch.bincount(torch.from_numpy(annotator[sign != 0]).long(), minlength=len(cache.annotators))


def crowd_of(cache: PreferenceCache) -> Crowd:
    """All that ``cache`` says of its votes."""
    votes = FlatVotes(*map(torch.from_numpy, cache.all_votes()), num_pairs=len(cache))
    known = {name: torch.from_numpy(values) for name, values in cache.known_of_votes().items()}
    return Crowd.of(votes, known, cache.topics)


def check_ranks_agree(em: AnnotatorReliability | RecordedReliability) -> None:
    """Every rank has to hold the same reliabilities and counts, to the bit: else each trains on posteriors of its own.

    One all-gather of 8 bytes a rank over the world; waits for the device.

    Raises:
        TrainingError: on every rank; names those whose reliabilities are not those of most.
    """
    hashes = gather_over_world(_hash(torch.cat((em.eta, em.label_counts, em.right_sums))))
    counted = Counter(hashes)
    most, _ = max(counted.items(), key=lambda found: (found[1], found[0] == hashes[0]))
    if differing := [rank for rank, found in enumerate(hashes) if found != most]:
        ranks = f"rank{'s' * (len(differing) > 1)} {', '.join(map(str, differing))}"
        raise TrainingError(
            f"the annotators' reliabilities on {ranks} differ from those of the other ranks after step {em.step}: "
            "start again to go on from the last checkpoint, on other devices if it happens again"
        )


def _hash(values: Tensor) -> Tensor:
    """int64 [] of float64 ``values``: a change of any one value, in whichever bit, gives another number."""
    bits = values.view(torch.int64)
    return (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()  # odd factors lose nothing modulo 2^64
