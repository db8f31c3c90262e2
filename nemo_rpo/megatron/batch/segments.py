"""Who attends to whom in a pack: trees of tokens, end to end.

A tree is a trunk of tokens and branches that go on from it: each token attends to its trunk and to the earlier tokens
of its own branch. A sequence is a trunk without branches; a pair with one prompt is a trunk with two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


def later_mask(length: int, before: int, like: Tensor) -> Tensor:
    """What is added to the scores ``[length, before + length]`` of ``length`` tokens that see ``before`` earlier ones
    and each other causally: 0 where they may look, else -inf.
    """
    ahead = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)
    return torch.nn.functional.pad(ahead, (before, 0))


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

    def packed_seq_params(self, device: torch.device) -> PackedSeqParams:
        """The same for Transformer Engine's attention, which knows sequences but no branches."""
        lengths = [trunk for trunk, *branches in self.trees]
        assert all(len(tree) == 1 for tree in self.trees), "Transformer Engine's packed attention has no branches"
        ends = torch.tensor([0, *lengths]).cumsum(0).to(device=device, dtype=torch.int32)
        return PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends,
            max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths),
        )  # fmt: skip
