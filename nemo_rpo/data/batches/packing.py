"""Which pairs share a micro-batch when pairs are packed end to end instead of padded to one length.

A pure function of the global batch and its lengths: every rank finds the same answer without a word between them, and a
resumed run finds it again.

What is said of pairs goes for rankings of more than two responses too: a pack has all of one.

Shapes: n pairs of a global batch, D data-parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """How the pairs of a global batch become packs.

    Attributes:
        budget: tokens of a pack, at least those of the largest pair.
        share_prompts: a prompt stands in the pack once, and both responses attend to it.
        sequence_multiple_of: each sequence of a pack is padded to it; above 1 not with ``share_prompts``.
        count_multiple_of: the number of packs of a rank is a multiple of it (interleaved pipeline schedules).
        in_step: all ranks have equally many packs (those of expert parallelism exchange tokens in each).
    """

    budget: int
    share_prompts: bool
    sequence_multiple_of: int = 1
    count_multiple_of: int = 1
    in_step: bool = False

    def sizes(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens that each pair takes, int64 [n], of ``lengths [n, 3]`` (prompt, chosen, rejected), or that each
        ranking takes, of ``lengths [n, 1+K]`` with 0 where it has fewer responses.
        """
        responses = lengths[:, 1:].astype(np.int64)
        if self.share_prompts:
            return responses.sum(1) + lengths[:, 0]
        padded = -(-(responses + lengths[:, :1]) // self.sequence_multiple_of) * self.sequence_multiple_of
        return np.where(responses > 0, padded, 0).sum(1)

    def packs(self, sizes: np.ndarray, rank: int, ranks: int) -> list[list[int]]:
        """The packs of one data-parallel rank, each a list of positions in ``sizes``; all ranks together have each
        pair once. With fewer pairs than ranks, some have none.
        """
        if self.in_step:
            return self.packs_in_step(sizes, ranks)[rank]
        mine = shares_of_ranks(sizes, ranks)[rank]
        return self._level(sizes, mine)

    def packs_in_step(self, sizes: np.ndarray, ranks: int) -> list[list[list[int]]]:
        """:meth:`packs` of every rank, equally many: those that need fewer than another split theirs, down to single
        pairs, and then have empty ones.
        """
        found = [self._level(sizes, share) for share in shares_of_ranks(sizes, ranks)]
        most = max(1, *map(len, found))
        most = -(-most // self.count_multiple_of) * self.count_multiple_of
        found = [_split(packs, min(most, sum(map(len, packs)))) for packs in found]
        return [packs + [[]] * (most - len(packs)) for packs in found]

    def _level(self, sizes: np.ndarray, share: list[int]) -> list[list[int]]:
        return [[share[i] for i in pack] for pack in level(sizes[share], self.budget, self.count_multiple_of)]


def prompts_pay(lengths: np.ndarray, least: float) -> bool:
    """Whether sharing prompts saves at least the share ``least`` of the tokens of all pairs or rankings; ``lengths`` as
    in :meth:`Packing.sizes`.
    """
    saved = int(((lengths[:, 1:] > 0).sum(1) - 1) @ lengths[:, 0].astype(np.int64))
    return saved >= least * (saved + int(lengths.sum(dtype=np.int64)))


def shares_of_ranks(sizes: np.ndarray, ranks: int) -> list[list[int]]:
    """Pairs of each rank, of nearly equal tokens and equal number (to one): the largest pair goes to the rank that has
    fewest tokens among those with room.

    >>> shares_of_ranks(np.array([9, 1, 8, 2]), ranks=2)
    [[0, 1], [2, 3]]
    """
    room = -(-len(sizes) // ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for i in _largest_first(sizes):
        rank = min((rank for rank in range(ranks) if len(shares[rank]) < room), key=tokens.__getitem__)
        shares[rank].append(i)
        tokens[rank] += int(sizes[i])
    return shares


def first_fit_decreasing(sizes: np.ndarray, budget: int) -> list[list[int]]:
    """The largest first, each into the first pack that has room, else into a new one: at most 11/9 of the fewest packs
    possible, and one more.

    >>> first_fit_decreasing(np.array([4, 7, 3, 6]), budget=10)
    [[1, 2], [3, 0]]
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for i in _largest_first(sizes):
        size = int(sizes[i])
        pack = next((pack for pack, left in enumerate(room) if left >= size), None)
        if pack is None:
            pack = len(packs)
            packs.append([])
            room.append(budget)
        packs[pack].append(i)
        room[pack] -= size
    return packs


def level(sizes: np.ndarray, budget: int, count_multiple_of: int) -> list[list[int]]:
    """As many packs as first-fit-decreasing needs, rounded up to ``count_multiple_of`` where there are pairs enough,
    made equally large where that fits into the budget: first-fit leaves its last pack nearly empty, and a pipeline or
    another rank waits for the full ones.
    """
    fitted = first_fit_decreasing(sizes, budget)
    count = min(-(-len(fitted) // count_multiple_of) * count_multiple_of, len(sizes))
    packs: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for i in _largest_first(sizes):
        pack = tokens.index(min(tokens))
        packs[pack].append(i)
        tokens[pack] += int(sizes[i])
    fits = not tokens or max(tokens) <= budget
    return packs if fits else _split(fitted, count)


def _split(packs: list[list[int]], count: int) -> list[list[int]]:
    """Takes pairs out of the packs that have most, until there are ``count``."""
    packs = [list(pack) for pack in packs]
    while len(packs) < count:
        packs.append([max(packs, key=len).pop()])
    return packs


def _largest_first(sizes: np.ndarray) -> list[int]:
    return np.argsort(-sizes, kind="stable").tolist()
