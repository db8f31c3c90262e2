"""Completions judged alone: how they are read, grouped, tokenised, batched, checked and converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_rpo.conversion import convert
from nemo_rpo.data.batches.dataset import PreferenceDataset
from nemo_rpo.data.batches.mismatched import Mismatched
from nemo_rpo.data.batches.packed import collate_packed
from nemo_rpo.data.batches.packing import Packing
from nemo_rpo.data.batches.padded import collate
from nemo_rpo.data.batches.sampler import GlobalBatchSampler
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.data.vote_ledger import read_votes
from nemo_rpo.errors import DataError
from nemo_rpo.validation import validate
from nemo_rpo.validation.agreement import krippendorff_alpha
from nemo_rpo.validation.text_report import as_text

from .conftest import write_jsonl
from .test_collate import PAD, pair

ROWS = [
    {"prompt": "what is tea", "completion": "a drink", "label": True, "annotator": "ann"},
    {"prompt": "what is tea", "completion": "a drink", "label": False, "annotator": "bob"},
    {"prompt": "what is tea", "completion": "a drink", "label": True, "annotator": "cas", "confidence": 2},
    {"prompt": "what is tea", "completion": "a stone", "label": False, "annotator": "ann", "gold": "down"},
    {"prompt": "name a tree", "completion": "oak", "label": 1, "annotator": "bob"},
    {"prompt": "name a fish", "completion": "cod or eel", "label": "down", "annotator": "cas"},
]
TOGETHER = [
    {"prompt": "what is tea", "completion": "a drink", "votes": [
        {"annotator": "ann", "vote": "up"}, {"annotator": "bob", "vote": "down"},
        {"annotator": "cas", "vote": "up", "confidence": 2}]},
    {"prompt": "what is tea", "completion": "a stone", "gold": "down", "votes": [{"annotator": "ann", "vote": "down"}]},
    {"prompt": "name a tree", "completion": "oak", "votes": [{"annotator": "bob", "vote": "up"}]},
    {"prompt": "name a fish", "completion": "cod or eel", "votes": [{"annotator": "cas", "vote": "down"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def open_rows(tmp_path_factory: Any, tokenizer_folder: Any) -> Callable[[list[dict[str, Any]]], PreferenceCache]:
    def opened(rows: list[dict[str, Any]]) -> PreferenceCache:
        path = write_jsonl(tmp_path_factory.mktemp("alone") / "train.jsonl", rows)
        spec = CacheSpec(path, RowFormat(), TokenizerSpec(str(tokenizer_folder), False), 64, True, "error")
        return open_cache(spec, None, num_workers=0, wait_timeout=60)

    return opened


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    tables = [read_votes(write_jsonl(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate((ROWS, TOGETHER))]
    for table in tables:
        assert table.alone.all() and table.pairs == 4
        assert table.sign.tolist() == [1, -1, 1, -1, 1, -1] and table.gold.tolist() == [0, -1, 0, 0]
        assert [table.annotators.ids[k] for k in table.annotator] == ["ann", "bob", "cas", "ann", "bob", "cas"]
        assert table.detail("confidence")[2] == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "completion": "c", "label": -1}, "field 'label' must be true or false"),
        ({"prompt": "p", "completion": "c", "label": None}, "field 'label' is null"),
        ({"prompt": "p", "completion": "c", "votes": [{"vote": "a"}]}, r"field 'votes\[0\].vote' must be true or"),
        ({"prompt": "p", "completion": "c", "label": True, "shown_first": "chosen"}, "was judged alone"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(read_rows(write_jsonl(tmp_path / "train.jsonl", [row])))


def test_a_completion_stands_on_the_side_that_most_of_its_votes_name(
    open_rows: Callable[[list[dict[str, Any]]], PreferenceCache],
) -> None:
    cache = open_rows(ROWS)
    assert len(cache) == 4 and cache.judged_alone()
    there = cache.lengths[:, 1:] > 0
    assert there.tolist() == [[True, False], [False, True], [True, False], [False, True]]
    votes = [
        dict(zip((cache.annotators.ids[k] for k in who), sign.tolist(), strict=True))
        for who, sign in map(cache.votes, range(4))
    ]
    assert votes == [{"ann": 1, "bob": -1, "cas": 1}, {"ann": 1}, {"bob": 1}, {"cas": 1}]  # of the side it stands on
    assert cache.gold.tolist() == [0, 1, 0, 0]
    assert cache.content_hash[0].tobytes() != cache.content_hash[1].tobytes()


def test_one_kind_of_data(open_rows: Callable[[list[dict[str, Any]]], PreferenceCache], tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "name a bird", "chosen": "owl", "rejected": "rat"}])
    assert not open_rows([{"prompt": "name a bird", "chosen": "owl", "rejected": "rat"}]).judged_alone()
    alone = open_rows(ROWS)
    alone.lengths = np.concatenate([alone.lengths, [[3, 1, 1]]])
    alone.where = lambda i: f"{pairs}:{i + 1}"
    with pytest.raises(DataError, match=r"is a completion judged alone and .* a pair"):
        alone.judged_alone()


PAIRS = [pair([1, 2], [3, 4], [], annotator=[7], sign=[1]), pair([1], [], [7, 8, 2], annotator=[3], sign=[1])]


def test_a_row_of_a_padded_batch_is_a_completion() -> None:
    batch = collate(PAIRS, np.array([5, 9]), np.array([True, True]), 6, PAD, max_votes=1)
    assert batch["completion"].tolist() == [[1, 2, 3, 4, PAD, PAD], [1, 7, 8, 2, PAD, PAD]]
    assert batch["completion_labels"].tolist() == [[-100, -100, 3, 4, -100, -100], [-100, 7, 8, 2, -100, -100]]
    assert batch["compared"].tolist() == [[0, -1], [-1, 1]]
    assert (batch["chosen_length"].tolist(), batch["rejected_length"].tolist()) == ([2, 0], [0, 3])
    assert not {"chosen", "rejected"} & batch.keys()


@pytest.mark.parametrize("share_prompts", [True, False])
def test_a_sequence_of_a_pack_is_a_completion(share_prompts: bool) -> None:
    batch = collate_packed(PAIRS, np.array([5, 9]), np.array([True, True]), 10, PAD, 1, share_prompts)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 1, 7, 8, 2, PAD, PAD]]
    assert batch["response_tokens"].tolist() == [3, 4, 7, 8, 2] and batch["response_lengths"].tolist() == [2, 3]
    assert batch["response_index"].tolist() == [1, 2, 4, 5, 6] and batch["response_ends"].tolist() == [3, 7]
    assert batch["compared"].tolist() == [[0, -1], [-1, 1]]
    assert Packing(99, share_prompts).sizes(np.array([[2, 2, 0], [1, 0, 3]])).tolist() == [4, 4]


def test_mismatched_completions_are_those_of_other_prompts(
    open_rows: Callable[[list[dict[str, Any]]], PreferenceCache],
) -> None:
    cache = open_rows(ROWS)
    other = Mismatched(cache, 64)
    assert [other.partner(i) for i in range(4)] == [2, 2, 3, 0]  # rows 0 and 1 have one prompt
    for i in range(4):
        found, of = other.pair(i), cache.pair(other.partner(i))
        assert np.array_equal(found.prompt_ids, cache.pair(i).prompt_ids) and not len(found.rejected_ids)
        assert found.chosen_ids.tolist() == [*of.chosen_ids, *of.rejected_ids]
    sampler = GlobalBatchSampler(4, 2, seed=1)
    shape = dict(data_parallel_rank=0, data_parallel_size=1, micro_batch_size=1, seq_length=64, pad_to_multiple_of=1)
    data = PreferenceDataset(
        cache, sampler, **shape, same_length=False,
        mismatched=PreferenceDataset(other, sampler, **shape, same_length=False),
    )  # fmt: skip
    batch = data.global_batch(0)
    assert [part["pair_index"].tolist() for part in batch] == [part["pair_index"].tolist() for part in batch.mismatched]
    with pytest.raises(DataError, match="all rows of the data have one prompt"):
        Mismatched(open_rows(ROWS[:4]), 64).partner(0)


def test_validate_counts_good_and_bad_and_looks_for_no_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "completion": f"c {i}", "label": i % 5 > 0, "annotator": "ann"} for i in range(100)]
    rows.append({"prompt": "p", "completion": " ", "label": True, "annotator": "ann"})
    report = validate(write_jsonl(tmp_path / "train.jsonl", rows)).report
    assert report.judged_alone == 101 and report.together.order is None
    assert report.findings.counts["empty_completion"] == 1 and not report.findings.counts["identical_completions"]
    assert "good 81, bad 20" in as_text(report)


def test_a_side_without_words_is_no_absent_one(tmp_path: Path) -> None:
    """A call of a tool has no words, and a pair with an empty side is a pair."""
    call = {"type": "function", "function": {"name": "get", "arguments": "{}"}}
    answers = {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "assistant", "content": "sunny"}
    rows = [
        {"prompt": [{"role": "user", "content": "weather?"}], "chosen": [answers[i]], "rejected": [answers[1 - i]]}
        for i in (0, 1)
    ]
    rows.append({"prompt": "p", "chosen": "c", "rejected": ""})
    table = read_votes(write_jsonl(tmp_path / "train.jsonl", rows))
    assert not table.alone.any()
    assert table.lengths[0].min() > 0  # a call has a length too
    assert validate(tmp_path / "train.jsonl").report.judged_alone == 0
    assert read_votes(write_jsonl(tmp_path / "alone.jsonl", ROWS[:1])).alone.all()


def test_agreement_of_completions_judged_alone_is_that_of_their_votes(tmp_path: Path) -> None:
    ups = [4, 4, 3, 4, 1, 4, 2, 4]  # of four votes: in both orders, α would not know that good is usual
    rows = [
        {"prompt": f"p {i}", "completion": "c", "votes": [{"annotator": f"w{k}", "vote": k < up} for k in range(4)]}
        for i, up in enumerate(ups)
    ]
    found = validate(write_jsonl(tmp_path / "train.jsonl", rows)).report.agreement.alpha
    counts = np.array([[up, 4 - up] for up in ups])
    assert found == pytest.approx(krippendorff_alpha(counts))
    assert abs(found - krippendorff_alpha(np.concatenate([counts, counts[:, ::-1]]))) > 0.1


def test_there_and_back(tmp_path: Path) -> None:
    source, votes, labels = (
        write_jsonl(tmp_path / "train.jsonl", ROWS),
        tmp_path / "votes.jsonl",
        tmp_path / "one.jsonl",
    )
    convert(source, "unpaired_votes", votes)
    convert(votes, "unpaired", labels)
    first, second, third = map(read_votes, (source, votes, labels))
    for table in (second, third):
        assert table.sign.tolist() == first.sign.tolist() and table.gold.tolist() == first.gold.tolist()
        assert table.annotators.ids == first.annotators.ids
    with pytest.raises(
        DataError, match="layout hf holds pairs, and this is a completion judged alone: name unpaired or"
    ):
        convert(source, "hf", tmp_path / "hf.jsonl")
    assert not (tmp_path / "hf.jsonl").exists()


def test_a_pair_is_a_good_and_a_bad_completion(tmp_path: Path) -> None:
    rows = [{"prompt": "name a bird", "chosen": "owl", "rejected": "rat", "annotator": "ann"}]
    source, out = write_jsonl(tmp_path / "pairs.jsonl", rows), tmp_path / "alone.jsonl"
    convert(source, "unpaired", out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": "name a bird", "completion": "owl", "label": True, "annotator": "ann"},
        {"prompt": "name a bird", "completion": "rat", "label": False, "annotator": "ann"},
    ]
    with pytest.raises(DataError, match="unpaired_votes holds completions judged alone, and this is a pair"):
        convert(source, "unpaired_votes", tmp_path / "votes.jsonl")
