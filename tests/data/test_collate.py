"""Tensors of a micro-batch, and the batches of a data set over ranks."""

import numpy as np
import pytest
import torch

from nemo_rpo.data.batches.dataset import PreferenceDataset
from nemo_rpo.data.batches.padded import collate, padded_length
from nemo_rpo.data.batches.sampler import GlobalBatchSampler
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import TokenizedPair
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec

from .conftest import write_jsonl
from .test_cache import random_rows

PAD = 9


def pair(prompt, chosen, rejected, annotator=(0,), sign=(1,), gold=None, **columns):
    ids = (np.array(part, dtype=np.int32) for part in (prompt, chosen, rejected))
    return TokenizedPair(*ids, np.array(annotator, np.int64), np.array(sign, np.int8), "id", b"h" * 16, columns, gold)


def test_a_micro_batch_by_hand():
    pairs = [
        pair([1, 2], [3, 4], [5], annotator=[7, 3], sign=[1, -1], gold=-1, margin=0.5),
        pair([1], [6], [7, 8, 2], margin=float("nan")),
    ]
    batch = collate(pairs, np.array([11, 4]), np.array([True, True]), seq_length=5, pad_id=PAD, max_votes=3)
    assert batch["chosen"].tolist() == [[1, 2, 3, 4, PAD], [1, 6, PAD, PAD, PAD]]
    assert batch["rejected"].tolist() == [[1, 2, 5, PAD, PAD], [1, 7, 8, 2, PAD]]
    assert batch["chosen_labels"].tolist() == [[-100, -100, 3, 4, -100], [-100, 6, -100, -100, -100]]
    assert batch["rejected_labels"].tolist() == [[-100, -100, 5, -100, -100], [-100, 7, 8, 2, -100]]
    assert batch["chosen_length"].tolist() == [2, 1]
    assert batch["rejected_length"].tolist() == [1, 3]
    assert batch["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert batch["annotator"].tolist() == [[7, 3, 0], [0, 0, 0]]
    assert batch["sign"].tolist() == [[1, -1, 0], [1, 0, 0]]
    assert batch["gold"].tolist() == [-1, 0]
    assert batch["valid"].tolist() == [True, True]
    assert batch["pair_index"].tolist() == [11, 4]
    assert batch["margin"][0] == 0.5 and batch["margin"][1].isnan()
    integers = {name for name, tensor in batch.items() if tensor.dtype == torch.int64}
    assert integers == {
        *("chosen", "rejected", "chosen_labels", "rejected_labels", "chosen_length", "rejected_length"),
        *("position_ids", "annotator", "gold", "pair_index"),
    }
    assert batch["sign"].dtype == batch["margin"].dtype == torch.float32


def test_of_a_dialogue_the_assistants_turns_are_scored():
    pairs = [
        pair([1, 2], [3, 4, 5, 6], [7])._replace(chosen_runs=np.array([1, 2, 1]), rejected_runs=np.array([1])),
        pair([1], [6], [7, 8, 2])._replace(chosen_runs=np.array([1]), rejected_runs=np.array([0, 1, 2])),
    ]
    batch = collate(pairs, np.array([0, 1]), np.array([True, True]), seq_length=6, pad_id=PAD, max_votes=1)
    assert batch["chosen"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 6, PAD, PAD, PAD, PAD]]
    assert batch["chosen_labels"].tolist() == [[-100, -100, 3, -100, -100, 6], [-100, 6, -100, -100, -100, -100]]
    assert batch["rejected_labels"][1].tolist() == [-100, -100, 8, 2, -100, -100]
    assert (batch["chosen_length"].tolist(), batch["rejected_length"].tolist()) == ([2, 1], [1, 2])
    assert batch["turn_lengths"].tolist() == [[1, 1], [1, 0], [1, 0], [2, 0]]


def test_a_row_that_fills_up_has_real_tokens_and_no_vote():
    real = pair([1, 2], [3, 4], [5])
    batch = collate([real, real], np.array([0, -1]), np.array([True, False]), seq_length=4, pad_id=PAD, max_votes=1)
    assert batch["sign"].tolist() == [[1], [0]]
    assert batch["valid"].tolist() == [True, False]
    assert batch["chosen_length"].tolist() == [2, 2], "a mean over no token would be NaN"
    assert torch.equal(batch["chosen_labels"][0], batch["chosen_labels"][1])


@pytest.mark.parametrize(
    ("multiple_of", "seq_length", "expected"), [(1, 64, 12), (8, 64, 16), (16, 64, 16), (1, 12, 12), (8, 12, 16)]
)
def test_padded_length(multiple_of, seq_length, expected):
    assert padded_length(np.array([[5, 4, 7], [3, 9, 2]]), multiple_of, seq_length) == expected


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tokenizer_folder):
    path = write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", list(random_rows(101)))
    spec = CacheSpec(path, RowFormat(), TokenizerSpec(str(tokenizer_folder), False), 64, True, "error")
    return open_cache(spec, None, num_workers=0, wait_timeout=60)


def dataset(cache, rank=0, ranks=1, micro=2, same_length=True, **sampling):
    sampler = GlobalBatchSampler(len(cache), 8, seed=1, **sampling)
    return PreferenceDataset(
        cache,
        sampler,
        data_parallel_rank=rank,
        data_parallel_size=ranks,
        micro_batch_size=micro,
        seq_length=64,
        pad_to_multiple_of=4,
        same_length=same_length,
    )


def rows_of(batches):
    """Every row of some micro-batches, by pair index."""
    rows = {}
    for batch in batches:
        for i, index in enumerate(batch["pair_index"].tolist()):
            rows[index] = {name: tensor[i] for name, tensor in batch.items() if name != "position_ids"}
    return rows


@pytest.mark.parametrize(("ranks", "micro"), [(2, 2), (4, 1), (2, 4), (1, 8)])
def test_ranks_together_hold_the_same_rows_at_the_same_length(cache, ranks, micro):
    alone = rows_of(dataset(cache).global_batch(5))
    shares = [dataset(cache, rank, ranks, micro).global_batch(5) for rank in range(ranks)]
    together = rows_of([batch for share in shares for batch in share])
    assert together.keys() == alone.keys()
    for index, row in alone.items():
        assert all(torch.equal(together[index][name], value) for name, value in row.items())


def test_without_a_pipeline_each_micro_batch_is_as_long_as_its_own_pairs(cache):
    one_length = dataset(cache).global_batch(5)
    own_length = dataset(cache, same_length=False).global_batch(5)
    assert len({batch["chosen"].shape for batch in one_length}) == 1
    assert len({batch["chosen"].shape for batch in own_length}) > 1
    for short, long in zip(own_length, one_length, strict=True):
        longest = int((cache.lengths[short["pair_index"], 0] + cache.lengths[short["pair_index"], 1:].max(1)).max())
        assert short["chosen"].shape[1] == -(-longest // 4) * 4
        assert torch.equal(short["chosen_labels"], long["chosen_labels"][:, : short["chosen"].shape[1]])


def test_prefetching_gives_what_asking_gives(cache):
    data = dataset(cache, rank=1, ranks=2)
    for step, batches in enumerate(data.batches(range(3, 20)), start=3):
        for batch, asked in zip(batches, data.global_batch(step), strict=True):
            assert all(torch.equal(batch[name], asked[name]) for name in asked)
    assert step == 19
    assert list(data.batches(range(4, 4))) == []


def test_prefetching_can_be_left_early_and_passes_errors_on(cache):
    data = dataset(cache)
    for _ in data.batches(range(0, 1000)):
        break
    data.sampler.batch = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(data.batches(range(0, 2)))


def test_evaluation_sees_every_pair_once(cache):
    data = dataset(cache, shuffle=False, drop_last=False)
    assert len(cache) % 8, "the example must have a partial batch to test anything"
    seen = []
    for step in range(len(data)):
        for batch in data.global_batch(step):
            assert torch.isfinite(batch["chosen"].float()).all()
            assert batch["chosen_length"].min() > 0
            assert (batch["sign"].abs().sum(1) > 0).equal(batch["valid"])
            seen += batch["pair_index"][batch["valid"]].tolist()
    assert seen == list(range(len(cache)))
