"""Cache, sampler and collate together: the micro-batches of any step for one data-parallel rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from nemo_rpo.data.batches.mismatched import Mismatched
from nemo_rpo.data.batches.packed import collate_packed
from nemo_rpo.data.batches.packing import Packing
from nemo_rpo.data.batches.padded import collate, padded_length
from nemo_rpo.data.batches.sampler import PADDING, GlobalBatchSampler, shard
from nemo_rpo.data.cache.store import PreferenceCache, TokenizedPair
from nemo_rpo.data.rankings import pairs_of, places_in_grid

Batch = dict[str, Tensor]


class GlobalBatch(list[Batch]):
    """The micro-batches of a rank's share of a global batch.

    Attributes:
        mismatched: micro-batches of the same prompts with other completions behind them (:class:`Mismatched`), where
            the loss measures how far the policy has gone from the reference on such.
    """

    mismatched: list[Batch]

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__(batches)
        self.mismatched = []


class PreferenceDataset:
    """This rank's share of the global batches of a cache. A batch is made of rankings; those of two responses are
    pairs.

    Args:
        cache: the rankings.
        sampler: their order.
        data_parallel_rank, data_parallel_size, micro_batch_size: the share; ranks of one model replica pass the same.
        seq_length: no batch is longer.
        pad_to_multiple_of: the padded length is a multiple of it (tensor and context parallel sizes, FP8).
        same_length: all micro-batches of a global batch are as long as its longest pair, or pack, as a pipeline needs
            it; off: each as its own.
        packing: packs instead of padded micro-batches of ``micro_batch_size`` rankings; None: none.
        mismatched: the same over a :class:`Mismatched`, for :attr:`GlobalBatch.mismatched`.
    """

    def __init__(
        self,
        cache: PreferenceCache | Mismatched,
        sampler: GlobalBatchSampler,
        *,
        data_parallel_rank: int,
        data_parallel_size: int,
        micro_batch_size: int,
        seq_length: int,
        pad_to_multiple_of: int,
        same_length: bool,
        packing: Packing | None = None,
        mismatched: PreferenceDataset | None = None,
    ) -> None:
        self.cache = cache
        self.sampler = sampler
        self.data_parallel_rank = data_parallel_rank
        self.data_parallel_size = data_parallel_size
        self.micro_batch_size = micro_batch_size
        self.seq_length = seq_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.same_length = same_length
        self.packing = packing
        self.mismatched = mismatched

    def __len__(self) -> int:
        """Global batches an epoch."""
        return self.sampler.steps_per_epoch

    def global_batch(self, step: int) -> GlobalBatch:
        """This rank's micro-batches of global batch ``step``: padded, with keys as in :func:`collate`, or packs, with
        keys as in :func:`collate_packed`.
        """
        found = GlobalBatch(self._micro_batches(step))
        if self.mismatched is not None:
            found.mismatched = self.mismatched.global_batch(step)
        return found

    def _micro_batches(self, step: int) -> list[Batch]:
        indices = self.sampler.batch(step)
        if self.packing is not None:
            return self._packs(indices[indices != PADDING], self.packing)
        shares = shard(indices, self.data_parallel_rank, self.data_parallel_size, self.micro_batch_size)
        return [
            self._micro_batch(share, of_length=indices if self.same_length else share, filler=int(indices[0]))
            for share in shares
        ]

    def batches(self, steps: Iterable[int]) -> Iterator[GlobalBatch]:
        """The global batches of ``steps`` in turn, the next one being prepared by a thread while one is in use."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
            upcoming: deque[Future] = deque()
            for step in steps:
                upcoming.append(pool.submit(self.global_batch, step))
                if len(upcoming) > 1:
                    yield upcoming.popleft().result()
            while upcoming:
                yield upcoming.popleft().result()

    def _micro_batch(self, share: np.ndarray, of_length: np.ndarray, filler: int) -> Batch:
        """The rankings ``share``, padded to the longest of ``of_length``; ``filler`` replaces missing ones."""
        lengths = self.cache.ranking_lengths[np.where(of_length == PADDING, filler, of_length)]
        length = padded_length(lengths, self.pad_to_multiple_of, self.seq_length)
        valid = share != PADDING
        pairs = self._pairs(np.where(valid, share, filler), valid)
        return collate(*pairs, length, self.cache.pad_id, self.cache.max_votes, max_responses=self.cache.max_responses)

    def _pairs(self, rankings: np.ndarray, valid: np.ndarray) -> tuple[list[TokenizedPair], np.ndarray, np.ndarray]:
        """The pairs of rankings in a grid (:mod:`nemo_rpo.data.rankings`), their indices in the cache and whether they
        count; a place without a pair has its ranking's first, and index −1.
        """
        responses = self.cache.max_responses
        grid = np.full((len(rankings), pairs_of(responses)), PADDING, dtype=np.int64)
        found: list[TokenizedPair] = []
        for row, ranking, counts in zip(grid, rankings.tolist(), valid.tolist(), strict=True):
            numbers = self.cache.pairs_of(ranking)
            places = places_in_grid(len(numbers), responses)
            read = {place: self.cache.pair(i) for place, i in zip(places.tolist(), numbers, strict=True)}
            found += [read.get(place, read[0]) for place in range(len(row))]
            if counts:
                row[places] = numbers
        return found, grid.reshape(-1), grid.reshape(-1) != PADDING

    def _packs(self, indices: np.ndarray, packing: Packing) -> list[Batch]:
        sizes = packing.sizes(self.cache.ranking_lengths[indices])
        packs = packing.packs(sizes, self.data_parallel_rank, self.data_parallel_size)
        # A rank of an evaluation's last batch may have too few: one that does not count runs in their place.
        packs += [[]] * (-len(packs) % packing.count_multiple_of if packs else packing.count_multiple_of)
        lengths = [int(sizes[pack or [0]].sum()) for pack in packs]
        longest = max(lengths)
        if packing.in_step:
            of_ranks = packing.packs_in_step(sizes, self.data_parallel_size)
            longest = max(int(sizes[pack or [0]].sum()) for packs_of_rank in of_ranks for pack in packs_of_rank)
        return [
            self._pack(
                indices[pack or [0]],
                np.full(len(pack) or 1, bool(pack)),
                longest if self.same_length else length,
                packing,
            )
            for pack, length in zip(packs, lengths, strict=True)
        ]

    def _pack(self, share: np.ndarray, valid: np.ndarray, length: int, packing: Packing) -> Batch:
        length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        cache = self.cache
        return collate_packed(
            *self._pairs(share, valid),
            length,
            cache.pad_id,
            cache.max_votes,
            packing.share_prompts,
            max_responses=cache.max_responses,
            sequence_multiple_of=packing.sequence_multiple_of,
        )
