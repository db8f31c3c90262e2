"""Packed micro-batches by hand, and the pairs of a data set in packs over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_rpo.data.batches.dataset import PreferenceDataset
from nemo_rpo.data.batches.packed import collate_packed
from nemo_rpo.data.batches.packing import Packing
from nemo_rpo.data.batches.sampler import GlobalBatchSampler
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec

from .conftest import write_jsonl
from .test_cache import random_rows
from .test_collate import PAD, pair

PAIRS = [pair([1, 2], [3, 4], [5], annotator=[7, 3], sign=[1, -1], margin=0.5), pair([1], [6], [7, 8, 2])]


def packed(share_prompts: bool, seq_length: int) -> dict[str, Tensor]:
    index, valid = np.array([11, 4]), np.array([True, True])
    pairs = [PAIRS[0], PAIRS[1]._replace(columns={"margin": float("nan")})]
    return collate_packed(pairs, index, valid, seq_length, PAD, max_votes=3, share_prompts=share_prompts)


def test_sequences_end_to_end() -> None:
    batch = packed(share_prompts=False, seq_length=15)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 1, 2, 5, 1, 6, 1, 7, 8, 2, PAD, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1]]
    assert batch["segments"].tolist() == [[4, 0, 0], [3, 0, 0], [2, 0, 0], [4, 0, 0], [2, 0, 0]]
    assert batch["response_tokens"].tolist() == [3, 4, 6, 5, 7, 8, 2]  # chosen, then rejected
    assert batch["response_index"].tolist() == [1, 2, 7, 5, 9, 10, 11]
    assert batch["response_ends"].tolist() == [3, 8, 6, 12]


def test_sequences_that_are_padded_one_by_one() -> None:
    """For Transformer Engine under context parallelism; what a pack scores does not change."""
    index, valid = np.array([11, 4]), np.array([True, True])
    pairs = [of._replace(columns={}) for of in PAIRS]
    batch = collate_packed(pairs, index, valid, 20, PAD, max_votes=3, share_prompts=False, sequence_multiple_of=4)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 1, 2, 5, PAD, 1, 6, PAD, PAD, 1, 7, 8, 2, PAD, PAD, PAD, PAD]]
    assert batch["position_ids"].tolist() == [[*range(4)] * 5]
    assert batch["segments"].tolist() == [[4, 0, 0]] * 5
    assert batch["response_tokens"].tolist() == [3, 4, 6, 5, 7, 8, 2]
    assert batch["response_index"].tolist() == [1, 2, 8, 5, 12, 13, 14]
    assert batch["response_ends"].tolist() == [3, 9, 6, 15]


def test_of_a_dialogue_the_assistants_turns_are_scored() -> None:
    dialogue = pair([1, 2], [3, 4, 5, 6], [7, 8])
    dialogue = dialogue._replace(chosen_runs=np.array([1, 2, 1]), rejected_runs=np.array([0, 1, 1]))
    index, valid = np.array([0]), np.array([True])
    for share_prompts, places in ((False, [1, 4, 8]), (True, [1, 4, 6])):
        batch = collate_packed([dialogue], index, valid, 10, PAD, max_votes=1, share_prompts=share_prompts)
        assert batch["response_tokens"].tolist() == [3, 6, 8]
        assert batch["response_index"].tolist() == places
        assert batch["response_ends"].tolist() == [5, 7 if share_prompts else 9]
        assert (batch["chosen_length"].tolist(), batch["rejected_length"].tolist()) == ([2], [1])
        assert batch["turn_lengths"].tolist() == [[1, 1], [1, 0]]


def test_one_prompt_for_both_responses() -> None:
    batch = packed(share_prompts=True, seq_length=10)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 5, 1, 6, 7, 8, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 1, 1, 2, 3]]
    assert batch["segments"].tolist() == [[2, 2, 1], [1, 1, 3]]
    assert batch["response_tokens"].tolist() == [3, 4, 6, 5, 7, 8, 2]
    # The last token of the prompt predicts the first of either response.
    assert batch["response_index"].tolist() == [1, 2, 5, 1, 5, 7, 8]


def test_what_a_pair_has_beside_its_tokens() -> None:
    batch = packed(share_prompts=True, seq_length=10)
    assert batch["chosen_length"].tolist() == [2, 1] and batch["rejected_length"].tolist() == [1, 3]
    assert batch["annotator"].tolist() == [[7, 3, 0], [0, 0, 0]] and batch["sign"].tolist() == [[1, -1, 0], [1, 0, 0]]
    assert batch["pair_index"].tolist() == [11, 4] and batch["valid"].tolist() == [True, True]
    assert batch["margin"][0] == 0.5 and batch["margin"][1].isnan()


# --- a data set in packs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: Any, tokenizer_folder: Any) -> PreferenceCache:
    path = write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", list(random_rows(101)))
    spec = CacheSpec(path, RowFormat(), TokenizerSpec(str(tokenizer_folder), False), 64, True, "error")
    return open_cache(spec, None, num_workers=0, wait_timeout=60)


def packs(
    cache: PreferenceCache, step: int, ranks: int, evaluation: bool = False, same_length: bool = False, **packing: Any
) -> list[list[dict[str, Tensor]]]:
    """Each rank's packs of a global batch of 8 pairs, at most 160 tokens each."""
    sampler = GlobalBatchSampler(len(cache), 8, seed=1, shuffle=not evaluation, drop_last=not evaluation)
    return [
        PreferenceDataset(
            cache, sampler, data_parallel_rank=rank, data_parallel_size=ranks, micro_batch_size=1, seq_length=64,
            pad_to_multiple_of=4, same_length=same_length, packing=Packing(160, **({"share_prompts": True} | packing)),
        ).global_batch(step)
        for rank in range(ranks)
    ]  # fmt: skip


def pair_indices(batches: list[dict[str, Tensor]]) -> Iterator[int]:
    for batch in batches:
        yield from batch["pair_index"][batch["valid"]].tolist()


@pytest.mark.parametrize(("share_prompts", "multiple"), [(True, 1), (False, 1), (False, 4)])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_together_hold_the_global_batch(
    cache: PreferenceCache, ranks: int, share_prompts: bool, multiple: int
) -> None:
    shares = packs(cache, 5, ranks, share_prompts=share_prompts, sequence_multiple_of=multiple)
    wanted = GlobalBatchSampler(len(cache), 8, seed=1).batch(5).tolist()
    assert sorted(i for share in shares for i in pair_indices(share)) == sorted(wanted)
    assert {len(list(pair_indices(share))) for share in shares} == {8 // ranks}
    for batch in (batch for share in shares for batch in share):
        size = batch["tokens"].shape[1]
        assert size % 4 == 0 and size <= 160 and int(batch["segments"].sum()) == size
        lengths = torch.from_numpy(cache.lengths[batch["pair_index"].numpy()])
        assert torch.equal(batch["chosen_length"], lengths[:, 1].long())
        assert size - int(Packing(160, share_prompts, multiple).sizes(lengths.numpy()).sum()) < 4  # nearly no padding
        assert not (batch["segments"][:, 0] % multiple).any()


def test_a_pipeline_gets_packs_of_one_length_and_in_the_right_number(cache: PreferenceCache) -> None:
    [share] = packs(cache, 5, 1, same_length=True, count_multiple_of=4)
    assert len(share) % 4 == 0 and len({batch["tokens"].shape for batch in share}) == 1


def last_of_evaluation(cache: PreferenceCache) -> tuple[int, list[int]]:
    """The step whose global batch is not full, and its pairs."""
    step, pairs = len(cache) // 8, list(range(len(cache) // 8 * 8, len(cache)))
    assert 1 < len(pairs) < 8
    return step, pairs


def test_the_rows_that_fill_up_an_evaluation_are_left_out(cache: PreferenceCache) -> None:
    step, pairs = last_of_evaluation(cache)
    [share] = packs(cache, step, 1, evaluation=True)
    assert sorted(pair_indices(share)) == pairs and all(batch["valid"].all() for batch in share)


def test_a_rank_without_a_pair_runs_one_that_does_not_count(cache: PreferenceCache) -> None:
    step, pairs = last_of_evaluation(cache)
    shares = packs(cache, step, 8, evaluation=True)
    assert sorted(i for share in shares for i in pair_indices(share)) == pairs
    idle = [batch for share in shares for batch in share if not batch["valid"].any()]
    assert len(idle) == 8 - len(pairs)
    for batch in idle:
        assert batch["pair_index"].tolist() == [-1] and not batch["sign"].any() and batch["tokens"].numel()
