"""The trees of a pack as attention takes them."""

from __future__ import annotations

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import torch

from nemo_rpo.megatron.batch.segments import Segments

CPU = torch.device("cpu")


def test_empty_branches_are_none() -> None:
    assert Segments.of(torch.tensor([[4, 0, 0], [2, 3, 1]])).trees == [(4,), (2, 3, 1)]


def test_a_branch_sees_the_trunk_and_what_came_before_in_itself() -> None:
    segments = Segments([(2, 1, 3)])
    mask = segments.mask(3, 2, like=torch.zeros(1))
    assert mask.exp().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert segments.mask(3, 2, like=torch.zeros(1)) is mask


def test_transformer_engine_gets_the_ends_of_sequences() -> None:
    found = Segments([(4,), (3,), (5,)]).packed_seq_params(CPU)
    assert found.qkv_format == "thd" and found.max_seqlen_q == found.max_seqlen_kv == 5
    assert found.cu_seqlens_q.tolist() == found.cu_seqlens_kv.tolist() == [0, 4, 7, 12]
    assert found.cu_seqlens_q.dtype == torch.int32


def test_transformer_engine_is_given_no_branches() -> None:
    with pytest.raises(AssertionError, match="no branches"):
        Segments([(2, 1, 1)]).packed_seq_params(CPU)
