"""Rankings from their files to a micro-batch: layouts, pairs, what is left out, grids and packs."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from nemo_rpo.conversion.rewrite import convert
from nemo_rpo.data.batches.dataset import PreferenceDataset
from nemo_rpo.data.batches.packing import Packing
from nemo_rpo.data.batches.sampler import GlobalBatchSampler
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import DataError
from nemo_rpo.validation.clean import write_clean
from nemo_rpo.validation.scan import validate

from .conftest import write_jsonl

TEXTS = ["yes it is", "it may be", "no", "who knows"]
PLAIN = {"prompt": "why so?", "responses": TEXTS[:3], "rewards": [2.0, 1.5, -1.0], "annotator": "w1"}
OF_NEMO_RL = {
    "context": [{"role": "user", "content": "why so?"}],
    "completions": [
        {"rank": rank, "completion": [{"role": "assistant", "content": TEXTS[rank - 1]}], "reward": reward}
        for rank, reward in ((3, -1.0), (1, 2.0), (2, 1.5))
    ],
    "annotator": "w1",
}


def text(said):
    return said if isinstance(said, str) else said[0]["content"]


def ranking(number, size, annotator="w1", rewards=True):
    responses = [f"{said} {number}" for said in TEXTS[:size]]
    known = {"rewards": [float(size - k) for k in range(size)]} if rewards else {}
    return {"prompt": f"why {number}?", "responses": responses, "annotator": annotator, **known}


@pytest.fixture
def opened(tmp_path, tokenizer_folder):
    def make(rows, group_votes=True, invalid_pairs="error"):
        path = write_jsonl(tmp_path / "train.jsonl", list(rows))
        spec = CacheSpec(path, RowFormat(), TokenizerSpec(str(tokenizer_folder), False), 64, group_votes, invalid_pairs)
        return open_cache(spec, None, num_workers=0, wait_timeout=60)

    return make


# --- rows


@pytest.mark.parametrize("row", [PLAIN, OF_NEMO_RL], ids=["rankings", "nemo_rl"])
def test_layouts_put_the_best_first(tmp_path, row):
    (read,) = read_rows(write_jsonl(tmp_path / "data.jsonl", [row]))
    assert [text(of) for of in read.responses] == TEXTS[:3]
    assert read.rewards == (2.0, 1.5, -1.0) and not read.columns
    assert [(vote.annotator, vote.sign) for vote in read.votes] == [("w1", 1)]


def test_a_ranking_of_two_is_a_pair_with_rewards(tmp_path):
    (read,) = read_rows(write_jsonl(tmp_path / "data.jsonl", [ranking(0, 2)]))
    assert (read.chosen, read.rejected, read.further) == ("yes it is 0", "it may be 0", ())
    assert read.columns == {"chosen_reward": 2.0, "rejected_reward": 1.0}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"responses": ["alone"], "rewards": None}, "'responses' holds 1 responses; a preference has 2 or more"),
        ({"responses": "alone"}, "'responses' must be a list of responses"),
        ({"responses": ["a", 3, "b"]}, r"'responses\[1\]' must be"),
        ({"rewards": [1.0]}, "'rewards' holds 1 numbers for 3 responses"),
        ({"rewards": [1.0, "x", 2.0]}, r"'rewards\[1\]' must be a number"),
        ({"margin": 1.0}, "'margin' speaks of two responses, and 'responses' holds 3"),
    ],
)
def test_what_is_wrong_with_a_ranking_is_named(tmp_path, change, error):
    with pytest.raises(DataError, match=error):
        list(read_rows(write_jsonl(tmp_path / "data.jsonl", [PLAIN, PLAIN | change])))


# --- the cache


def test_a_ranking_is_its_pairs(opened, tokenizer):
    cache = opened([ranking(0, 4, "w2"), ranking(1, 2), ranking(2, 3, rewards=False)])
    assert (len(cache), cache.rankings, cache.max_responses) == (10, 3, 4)
    assert [list(cache.pairs_of(i)) for i in range(3)] == [list(range(6)), [6], [7, 8, 9]]
    ids = [tokenizer.render("why 0?", f"{said} 0")[1].tolist() for said in TEXTS]
    for i, (better, worse) in enumerate(combinations(range(4), 2)):
        pair = cache.pair(i)
        assert (pair.chosen_ids.tolist(), pair.rejected_ids.tolist()) == (ids[better], ids[worse])
        assert (pair.columns["chosen_reward"], pair.columns["rejected_reward"]) == (4.0 - better, 4.0 - worse)
        assert cache.annotators.ids[pair.annotator[0]] == "w2" and pair.sign.tolist() == [1]
    assert np.isnan(cache.pair(8).columns["chosen_reward"])
    assert cache.ranking_lengths[0, 1:].tolist() == list(map(len, ids))
    assert (cache.ranking_lengths[:, 1:] > 0).sum(1).tolist() == [4, 2, 3]
    assert cache.share_of_ranking(slice(5, 9)) == pytest.approx([1 / 6, 1, 1 / 3, 1 / 3])
    assert len({cache.content_hash[i].tobytes() for i in range(10)}) == 10
    assert len({cache.pair_id(i) for i in range(10)}) == 10


def test_a_ranking_is_one_label(opened):
    cache = opened(
        [ranking(0, 4, "w2"), ranking(1, 3, "w2"), ranking(2, 2, "w1"), {**ranking(3, 3), "annotator": None}]
    )
    assert dict(zip(cache.annotators.ids, cache.annotators.labels, strict=True)) == {"w1": 1, "w2": 2, "all": 1}
    report = cache.report
    assert (report["rows"], report["votes"], report["rankings"], report["votes_without_annotator"]) == (4, 4, 3, 1)
    assert "(3 rankings of 3 to 4)" in cache.summary()


def test_its_pairs_have_the_hash_of_the_same_pairs_elsewhere(opened, tmp_path):
    ranked = opened([ranking(0, 3)])
    hashes, ids = ranked.content_hash[:].tolist(), [ranked.pair_id(i) for i in range(3)]
    responses = ranking(0, 3)["responses"]
    pairs = opened([{"prompt": "why 0?", "chosen": a, "rejected": b} for a, b in combinations(responses, 2)])
    assert pairs.content_hash[:].tolist() == hashes and [pairs.pair_id(i) for i in range(3)] == ids


@pytest.mark.parametrize("group_votes", [True, False])
def test_rankings_beside_pairs_stay_whole(opened, group_votes):
    cache = opened([ranking(1, 2), ranking(0, 3), ranking(1, 2, "w2"), ranking(0, 3, "w2")], group_votes)
    sizes = [len(cache.pairs_of(i)) for i in range(cache.rankings)]
    assert sizes == ([1, 3, 3] if group_votes else [1, 3, 1, 3])
    assert cache.max_votes == (2 if group_votes else 1)


INVALID = {
    "empty completion": {"responses": ["a", " ", "c"]},
    "identical completions": {"responses": ["a", "b", "a"]},
    "over-long completion": {"responses": ["a", "b", " ".join(TEXTS * 30)]},
}


@pytest.mark.parametrize("problem", INVALID)
def test_one_bad_response_leaves_out_the_ranking(opened, problem):
    rows = [ranking(0, 3), {"prompt": "q", **INVALID[problem]}]
    with pytest.raises(DataError, match=rf"train\.jsonl:2: {problem}.*\(1 of 2 pairs\)"):
        opened(rows)
    cache = opened(rows, invalid_pairs="drop")
    assert (cache.rankings, cache.report["dropped"]) == (1, {problem: 1})


def test_equal_ranks_are_left_out_and_counted(opened):
    rows = [
        {
            "context": "why?",
            "completions": [{"rank": k, "completion": said} for k, said in zip(ranks, TEXTS, strict=False)],
        }
        for ranks in ([2, 1, 2], [1, 3, 2])
    ]
    cache = opened(rows)
    assert (cache.rankings, cache.report["dropped"], cache.report["ties"]) == (1, {"equal ranks": 1}, 1)


def test_the_cache_is_opened_again(opened):
    first = opened([ranking(0, 4), ranking(1, 3)])
    built = (first.folder / "ranking_start.npy").stat().st_mtime_ns
    again = opened([ranking(0, 4), ranking(1, 3)])
    assert again.folder == first.folder and (again.folder / "ranking_start.npy").stat().st_mtime_ns == built
    assert [list(again.pairs_of(i)) for i in range(2)] == [list(range(6)), [6, 7, 8]]


# --- micro-batches


def batches(cache, packing=None, rank=0, ranks=1):
    return PreferenceDataset(
        cache,
        GlobalBatchSampler(cache.rankings, 4, seed=1, shuffle=False, drop_last=False),
        data_parallel_rank=rank,
        data_parallel_size=ranks,
        micro_batch_size=2,
        seq_length=64,
        pad_to_multiple_of=4,
        same_length=True,
        packing=packing,
    )


def responses_of(batch):
    """The scored tokens of every response of a micro-batch, in the order that the model has them."""
    if "segments" in batch:
        return [ids.tolist() for ids in batch["response_tokens"].split(batch["response_lengths"].tolist())]
    sides = [name for name in batch if name.startswith(("chosen", "rejected")) and name.endswith("_labels")]
    return [row[row != -100].tolist() for side in sides for row in batch[side]]


WAYS = {"padded": None, "one prompt": Packing(512, True), "a prompt each": Packing(512, False)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_grid_holds_every_pair_once(opened, way, ranks):
    cache = opened(ranking(i, (4, 2, 3, 4, 2, 3, 3)[i]) for i in range(7))
    seen = []
    shares = [batches(cache, WAYS[way], rank, ranks) for rank in range(ranks)]
    for batch in (batch for share in shares for step in range(2) for batch in share.global_batch(step)):
        valid, rows = batch["valid"], responses_of(batch)
        assert len(valid) == 6 * len(batch["ranking_size"])
        of_rankings = torch.where(valid, batch["weight"], 0.0).view(-1, 6).sum(1)
        assert of_rankings.tolist() == pytest.approx(valid.view(-1, 6).any(1).float().tolist())
        assert (batch["sign"].abs().sum(1) > 0).equal(valid) and (batch["weight"] > 0).equal(valid)
        for place in range(len(valid)):
            chosen, rejected = batch["compared"][:, place].tolist()
            assert rows[chosen] and rows[rejected], "no place may hold what is no response"
            if valid[place]:
                pair = cache.pair(int(batch["pair_index"][place]))
                assert (rows[chosen], rows[rejected]) == (pair.chosen_ids.tolist(), pair.rejected_ids.tolist())
                assert batch["chosen_length"][place] == len(pair.chosen_ids)
                assert batch["chosen_reward"][place] == pair.columns["chosen_reward"]
        seen += batch["pair_index"][valid].tolist()
    assert sorted(seen) == list(range(len(cache)))


def test_one_prompt_stands_for_all_responses(opened):
    cache = opened([ranking(0, 4), ranking(1, 3)])
    [batch] = batches(cache, Packing(512, True)).global_batch(0)
    lengths = cache.ranking_lengths
    trees = [[part for part in tree if part] for tree in batch["segments"].tolist()][:2]
    assert sorted(trees) == sorted([part for part in tree if part] for tree in lengths.tolist())
    assert int(Packing(512, True).sizes(lengths).sum()) == int(lengths.sum())
    assert Packing(512, False).sizes(lengths).tolist() == [
        int(lengths[0].sum() + 3 * lengths[0, 0]),
        int(lengths[1].sum() + 2 * lengths[1, 0]),
    ]


def test_where_all_are_pairs_nothing_is_said_of_rankings(opened):
    cache = opened([ranking(i, 2) for i in range(4)])
    for packing in WAYS.values():
        for batch in batches(cache, packing).global_batch(0):
            assert not batch.keys() & {"compared", "weight", "ranking_size", "rejected_2"}
    assert not (cache.folder / "ranking_start.npy").exists()


# --- the other readers


def test_converted_a_ranking_is_its_pairs(tmp_path):
    source = write_jsonl(tmp_path / "ranked.jsonl", [ranking(0, 3) | {"pair_id": "q"}, ranking(1, 2)])
    done = convert(source, "hf", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (done.rows, done.pairs, len(rows)) == (4, 4, 4)
    assert [(row["chosen"], row["rejected"]) for row in rows[:3]] == list(combinations(ranking(0, 3)["responses"], 2))
    assert [row["chosen_reward"] - row["rejected_reward"] for row in rows] == [1.0, 2.0, 1.0, 1.0]
    assert all(row["pair_id"].startswith("q:") for row in rows[:3]) and len({row["pair_id"] for row in rows[:3]}) == 3


def test_validation_looks_at_every_response(tmp_path):
    rows = [ranking(0, 3), ranking(1, 3) | {"responses": ["a", "", "b"]}, ranking(2, 2)]
    checked = validate(write_jsonl(tmp_path / "ranked.jsonl", rows))
    assert (checked.report.rows, checked.report.pairs) == (3, 7)
    assert checked.report.findings.counts["empty_completion"] == 2
    left_out = write_clean(checked, tmp_path / "clean.jsonl")
    assert (left_out.written, dict(left_out.rows)) == (2, {"empty_completion": 1})
