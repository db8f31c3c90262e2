"""Real files: a crowd's votes on arguments, human judgements of models, a dialogue set without ids."""

import csv
import json
from collections import Counter

import numpy as np
import pytest

from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.pairs import PairLedger
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import DataError

from .conftest import write_jsonl


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def votes_by_item(path):
    votes: dict[str, list] = {}
    for vote in read_csv(path):
        votes.setdefault(vote["item_id"], []).append({"annotator": vote["annotator"], "vote": vote["vote"]})
    return votes


@pytest.fixture(scope="module")
def arguments(shared_data, tmp_path_factory):
    """UKPConvArg1 in the ``votes`` layout."""
    folder = shared_data / "ukpconvarg1"
    topics = {topic["topic"]: f"{topic['title']}: {topic['stance']}" for topic in read_lines(folder / "topics.jsonl")}
    texts = {(line["topic"], line["arg"]): line["text"] for line in read_lines(folder / "arguments.jsonl")}
    votes = votes_by_item(folder / "votes.csv")
    rows = [
        {
            "pair_id": pair["item_id"],
            "prompt": topics[pair["topic"]] + "\n",
            "response_a": texts[pair["topic"], pair["arg_a"]],
            "response_b": texts[pair["topic"], pair["arg_b"]],
            "votes": votes[pair["item_id"]],
            "gold": pair["gold"] or None,
        }
        for pair in read_csv(folder / "pairs.csv")
    ]
    return write_jsonl(tmp_path_factory.mktemp("ukp") / "arguments.jsonl", rows)


def ledger_of(path, group_votes):
    ledger = PairLedger(group_votes)
    for row in read_rows(path):
        ledger.add(row)
    return ledger.close()


def test_the_crowds_votes_are_all_there(arguments):
    table = ledger_of(arguments, group_votes=True)
    assert (len(table), table.votes, len(table.annotators), table.ties) == (16927, 84445, 3815, 19105)
    per_pair = np.diff(table.vote_start)
    assert per_pair.max() == 5
    assert len(ledger_of(arguments, group_votes=False)) == 84445 - 19105 + int((per_pair == 0).sum())


def test_a_topic_trains_from_its_cache(arguments, shared_data, tmp_path):
    lines = arguments.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "topic.jsonl"
    path.write_text("\n".join(line for line in lines if '"pair_id": "t00_' in line), encoding="utf-8")
    tokenizer = TokenizerSpec(str(shared_data / "stories260k" / "hf"), use_chat_template=False)
    spec = CacheSpec(path, RowFormat(), tokenizer, 512, True, "drop")
    cache = open_cache(spec, None, num_workers=0, wait_timeout=60)
    by_id = {row["pair_id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    assert cache.max_token_id < cache.vocab_size == 512
    assert sum(cache.report["dropped"].values()) + len(cache) == len(by_id)
    for i in range(0, len(cache), 7):
        pair = cache.pair(i)
        row = by_id[pair.pair_id]
        count = Counter(vote["vote"] for vote in row["votes"])
        assert pair.sign.sum() == abs(count["a"] - count["b"])
        assert len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) <= 512


def test_the_empty_answers_of_pandalm_are_found(shared_data, tmp_path):
    folder = shared_data / "pandalm_testset"
    votes = votes_by_item(folder / "votes.csv")
    rows = [
        {
            "pair_id": item["item_id"],
            "prompt": f"{item['instruction']}\n{item['input']}\n",
            "response_a": item["response_a"],
            "response_b": item["response_b"],
            "votes": votes[item["item_id"]],
        }
        for item in read_lines(folder / "items.jsonl")
    ]
    path = write_jsonl(tmp_path / "pandalm.jsonl", rows)
    tokenizer = TokenizerSpec(str(shared_data / "stories260k" / "hf"), use_chat_template=False)
    with pytest.raises(DataError, match=r"pandalm\.jsonl:\d+: empty completion; .*model\.data\.invalid_pairs=drop"):
        open_cache(CacheSpec(path, RowFormat(), tokenizer, 2048, True, "error"), None, num_workers=0, wait_timeout=60)
    spec = CacheSpec(path, RowFormat(), tokenizer, 2048, True, "drop")
    report = open_cache(spec, None, num_workers=0, wait_timeout=60).report
    assert report["dropped"]["empty completion"] == 54
    assert (report["rows"], report["votes"], report["ties"], report["annotators"]) == (999, 4970, 471, 5)


def test_dialogues_without_a_prompt_field_split_at_their_last_shared_turn(shared_data):
    rows = list(read_rows(shared_data / "hh_harmless_test" / "test.jsonl.gz"))
    assert len(rows) == 2312
    assert all(row.prompt.endswith("\n\nAssistant:") for row in rows)
    # Five answers have a turn mark of their own, so that the last marks of the two sides do not end the same prompt.
    assert sum("\n\nAssistant:" in row.chosen + row.rejected for row in rows) == 2312 - 2307
