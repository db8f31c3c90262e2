"""Who attends to whom in a pack: trees of tokens, end to end; and which of its tokens a context-parallel rank has.

A tree is a trunk of tokens and branches that go on from it: each token attends to its trunk and to the earlier tokens
of its own branch. A sequence is a trunk without branches; a pair with one prompt is a trunk with two.

Over C context-parallel ranks the pack as a whole is cut into 2·C chunks, as a row is
(:mod:`nemo_rpo.megatron.batch.context_parallel`). Where every sequence divides by 2·C and none has branches, each is
cut by itself instead: so Transformer Engine's ring attention finds them, for which the data room has padded them
(``sequence_multiple_of`` of a packing). Either is exact; the first pads the pack alone.

Shapes: S tokens of a pack, C context-parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


def later_mask(length: int, before: int, like: Tensor) -> Tensor:
    """What is added to the scores ``[length, before + length]`` of ``length`` tokens that see ``before`` earlier ones
    and each other causally: 0 where they may look, else -inf.
    """
    ahead = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)
    return torch.nn.functional.pad(ahead, (before, 0))


class Run(NamedTuple):
    """Neighbouring tokens of a pack, of one part of a tree, that one context-parallel rank has.

    Attributes:
        begin, length: where they stand in the pack.
        seen: the numbers of the earlier runs, on whatever rank, that they attend to in whole: those of the trunk, and
            those before them in their own part.
        rank: whose they are.
    """

    begin: int
    length: int
    seen: tuple[int, ...]
    rank: int


@dataclass
class Segments:
    """The trees of a pack, in order; travels through Megatron's layers instead of its ``PackedSeqParams``.

    Attributes:
        trees: (trunk, branch, branch, …) in tokens; branches of 0 tokens are none.
        qkv_format: what Megatron's attention asks for; ``sbhd`` lets it pass [s, 1, …] on, untouched.
    """

    trees: list[tuple[int, ...]]
    qkv_format: str = "sbhd"
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    _runs: dict[int, list[Run]] = field(default_factory=dict, repr=False)
    _places: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, segments: Tensor) -> Segments:
        """Of int64 ``segments [k, 1 + m]`` on the CPU: trunk and m branches of each tree."""
        return cls([(trunk, *filter(None, branches)) for trunk, *branches in segments.tolist()])

    def mask(self, branch: int, trunk: int, like: Tensor) -> Tensor:
        """What is added to the scores ``[branch, trunk + branch]`` of a branch: 0 where it may look, else -inf.

        Made once for all layers of a micro-batch.
        """
        if (branch, trunk) not in self._masks:
            self._masks[branch, trunk] = later_mask(branch, trunk, like)
        return self._masks[branch, trunk]

    def runs(self, ranks: int) -> list[Run]:
        """The pack over ``ranks`` context-parallel ranks, in the order of its tokens; S divides by ``2 * ranks``.

        >>> for run in Segments([(3, 2, 3)]).runs(ranks=2):
        ...     print(*run)
        0 2 () 0
        2 1 (0,) 1
        3 1 (0, 1) 1
        4 1 (0, 1, 2) 1
        5 1 (0, 1) 1
        6 2 (0, 1, 4) 0
        """
        if ranks not in self._runs:
            self._runs[ranks] = self._cut(ranks)
        return self._runs[ranks]

    def places(self, ranks: int) -> list[Tensor]:
        """The positions in the pack that each of ``ranks`` context-parallel ranks has, in order, int64 ``[S / ranks]``.

        Made once for all layers of a micro-batch.
        """
        if ranks not in self._places:
            found: list[list[Tensor]] = [[] for _ in range(ranks)]
            for run in self.runs(ranks):
                found[run.rank].append(torch.arange(run.begin, run.begin + run.length))
            self._places[ranks] = list(map(torch.cat, found))
        return self._places[ranks]

    def _cut(self, ranks: int) -> list[Run]:
        chunks = 2 * ranks
        one_by_one = all(len(tree) == 1 and tree[0] % chunks == 0 for tree in self.trees)
        chunk = sum(map(sum, self.trees)) // chunks
        runs: list[Run] = []
        begin = 0
        for tree in self.trees:
            trunk: tuple[int, ...] = ()
            for part in tree:
                origin, length = (begin, part // chunks) if one_by_one else (0, chunk)
                seen, end = trunk, begin + part
                while begin < end:
                    number = (begin - origin) // length
                    here = min(end, origin + (number + 1) * length) - begin
                    runs.append(Run(begin, here, seen, min(number, chunks - 1 - number)))
                    seen, begin = (*seen, len(runs) - 1), begin + here
                trunk = trunk or seen
        return runs

    def packed_seq_params(self, device: torch.device) -> PackedSeqParams:
        """The same for Transformer Engine's attention, which knows sequences but no branches. Lengths are those over
        all context-parallel ranks.
        """
        lengths = [trunk for trunk, *branches in self.trees]
        assert all(len(tree) == 1 for tree in self.trees), "Transformer Engine's packed attention has no branches"
        ends = torch.tensor([0, *lengths]).cumsum(0).to(device=device, dtype=torch.int32)
        return PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends,
            max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths),
        )  # fmt: skip
