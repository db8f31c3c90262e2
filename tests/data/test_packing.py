"""Packs hold each pair once and no more than their budget, and ranks share the work evenly, whatever the lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_rpo.data.batches.packing import Packing, first_fit_decreasing, level, prompts_pay, shares_of_ranks

BUDGET = 100
SIZES = st.lists(st.integers(1, BUDGET), min_size=1, max_size=60).map(np.array)


def tokens_of(packs: list[list[int]], sizes: np.ndarray) -> list[int]:
    return [int(sizes[pack].sum()) for pack in packs]


def test_sizes_count_a_shared_prompt_once() -> None:
    lengths = np.array([[5, 2, 3], [1, 4, 4]])
    assert Packing(budget=99, share_prompts=False).sizes(lengths).tolist() == [15, 10]
    assert Packing(budget=99, share_prompts=True).sizes(lengths).tolist() == [10, 9]


def test_sizes_count_the_padding_of_each_sequence() -> None:
    lengths = np.array([[5, 2, 3, 0], [1, 4, 7, 3]])  # of up to three responses
    assert Packing(budget=99, share_prompts=False).sizes(lengths).tolist() == [15, 17]
    assert Packing(budget=99, share_prompts=False, sequence_multiple_of=4).sizes(lengths).tolist() == [16, 20]


@given(SIZES)
def test_first_fit_decreasing(sizes: np.ndarray) -> None:
    packs = first_fit_decreasing(sizes, BUDGET)
    assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
    used = tokens_of(packs, sizes)
    assert max(used) <= BUDGET
    for later in range(1, len(packs)):  # whatever opened a pack had no room in those before it
        assert all(BUDGET < sum(sizes[i] for i in pack) + sizes[packs[later][0]] for pack in packs[:later])


@given(SIZES, st.integers(1, 4))
def test_levelled_packs(sizes: np.ndarray, multiple: int) -> None:
    packs = level(sizes, BUDGET, multiple)
    assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
    assert all(packs) and max(tokens_of(packs, sizes)) <= BUDGET
    fewest = len(first_fit_decreasing(sizes, BUDGET))
    assert len(packs) == min(-(-fewest // multiple) * multiple, len(sizes))


def test_levelling_fills_the_last_pack() -> None:
    sizes = np.array([30] * 4)
    assert tokens_of(first_fit_decreasing(sizes, BUDGET), sizes) == [90, 30]
    assert tokens_of(level(sizes, BUDGET, 1), sizes) == [60, 60]


def test_levelling_gives_way_to_the_budget() -> None:
    """Largest into emptiest would need 105 tokens in a pack; first-fit has an answer."""
    sizes = np.array([55, 50, 45, 25, 25])
    assert sorted(tokens_of(level(sizes, BUDGET, 1), sizes)) == [100, 100]


@given(SIZES, st.integers(1, 5))
def test_ranks_have_equal_numbers_and_nearly_equal_tokens(sizes: np.ndarray, ranks: int) -> None:
    sizes = np.resize(sizes, len(sizes) * ranks)  # a global batch divides by its ranks
    shares = shares_of_ranks(sizes, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert {len(share) for share in shares} == {len(sizes) // ranks}
    tokens = tokens_of(shares, sizes)
    assert max(tokens) - min(tokens) <= BUDGET * (ranks - 1)


@given(SIZES, st.integers(1, 5))
def test_all_ranks_together_have_each_pair_once(sizes: np.ndarray, ranks: int) -> None:
    packing = Packing(BUDGET, share_prompts=True, count_multiple_of=2)
    packs = [pack for rank in range(ranks) for pack in packing.packs(sizes, rank, ranks)]
    assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
    assert packing.packs(sizes, 0, ranks) == packing.packs(sizes.copy(), 0, ranks)


@pytest.mark.parametrize(("prompt", "expected"), [(0, False), (10, False), (11, True), (1000, True)])
def test_sharing_pays_by_the_tokens_it_saves(prompt: int, expected: bool) -> None:
    lengths = np.array([[prompt, 100, 90]] * 3)  # 190 of responses and 2 prompts: 10.6 are a twentieth
    assert prompts_pay(lengths, least=0.05) == expected


@given(SIZES, st.integers(1, 4), st.integers(1, 3))
def test_ranks_in_step_have_equally_many_packs(sizes: np.ndarray, ranks: int, multiple: int) -> None:
    """Also where one has no pairs left: those of expert parallelism wait for each other in every pack."""
    packing = Packing(BUDGET, share_prompts=False, count_multiple_of=multiple, in_step=True)
    of_ranks = [packing.packs(sizes, rank, ranks) for rank in range(ranks)]
    assert sorted(i for packs in of_ranks for pack in packs for i in pack) == list(range(len(sizes)))
    counts = {len(packs) for packs in of_ranks}
    assert len(counts) == 1 and min(counts) > 0 and min(counts) % multiple == 0
    assert all(max(tokens_of(packs, sizes)) <= BUDGET for packs in of_ranks)
    alone = Packing(BUDGET, share_prompts=False, count_multiple_of=multiple)
    fewest = max(len(alone.packs(sizes, rank, ranks)) for rank in range(ranks))
    assert min(counts) == max(multiple, -(-fewest // multiple) * multiple)
    assert all(pack == [] for packs in of_ranks for pack in packs[sum(map(bool, packs)) :])  # what fills up comes last
