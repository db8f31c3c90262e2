"""The trees of a pack as attention takes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_rpo.megatron.batch.context_parallel import positions_of
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


# --- over context-parallel ranks

TREES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


def filled(trees: list[tuple[int, ...]], multiple_of: int) -> list[tuple[int, ...]]:
    """The trees, and a sequence that makes up a length which divides."""
    left = -sum(map(sum, trees)) % multiple_of
    return [*trees, (left,)] if left else trees


def sees(trees: list[tuple[int, ...]]) -> list[set[int]]:
    """Of each token those it may look at, by the definition of a tree."""
    place = [(t, b) for t, parts in enumerate(trees) for b, tokens in enumerate(parts) for _ in range(tokens)]
    return [{j for j in range(i + 1) if place[j][0] == t and place[j][1] in (0, b)} for i, (t, b) in enumerate(place)]


@given(TREES, st.sampled_from([2, 3, 4]), st.booleans())
def test_runs_show_each_token_what_its_tree_shows_it(
    trees: list[tuple[int, ...]], ranks: int, sequences_alone: bool
) -> None:
    if sequences_alone:
        trees = [(2 * ranks * trunk,) for trunk, *_ in trees]
    trees = filled(trees, 2 * ranks)
    runs = Segments(trees).runs(ranks)
    found = []
    for run in runs:
        before = {runs[i].begin + j for i in run.seen for j in range(runs[i].length)}
        found += [before | set(range(run.begin, run.begin + i + 1)) for i in range(run.length)]
    assert found == sees(trees)


@given(TREES, st.sampled_from([2, 3, 4]))
def test_ranks_have_a_pack_in_equal_shares(trees: list[tuple[int, ...]], ranks: int) -> None:
    places = Segments(filled(trees, 2 * ranks)).places(ranks)
    assert len({len(of_rank) for of_rank in places}) == 1
    assert torch.cat(places).sort().values.tolist() == list(range(sum(map(len, places))))
    assert all(torch.equal(of_rank, of_rank.sort().values) for of_rank in places)


def test_a_pack_with_branches_is_cut_as_a_row_is() -> None:
    trees = [(3, 2, 4), (5,), (2, 4, 4)]
    assert all(torch.equal(Segments(trees).places(3)[rank], positions_of(rank, 3, 24)) for rank in range(3))


@pytest.mark.every_release
@pytest.mark.parametrize("rank", range(2))
def test_sequences_that_divide_are_cut_as_megatron_expects_them_of_transformer_engine(rank: int) -> None:
    """Its rotary embedding of a THD pack takes the positions from where a token lies on the rank."""
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd

    segments, positions = Segments([(8,), (4,), (12,)]), torch.cat([torch.arange(n) for n in (8, 4, 12)])
    here = segments.places(2)[rank]
    angles = torch.randn(12, 1, 1, 4)
    heads = torch.randn(len(here), 3, 4)
    group = SimpleNamespace(size=lambda: 2, rank=lambda: rank)
    theirs = _apply_rotary_pos_emb_thd(heads, segments.packed_seq_params(CPU).cu_seqlens_q, angles, cp_group=group)
    of_each = angles[positions[here]].squeeze(1)  # [s, 1, d]
    first, second = heads.chunk(2, -1)
    assert torch.allclose(theirs, heads * of_each.cos() + torch.cat((-second, first), -1) * of_each.sin(), atol=1e-6)
