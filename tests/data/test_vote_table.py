"""The votes table: one reader for everything that looks at labels alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_rpo.data.formats import read_rows
from nemo_rpo.data.pairs import PairLedger
from nemo_rpo.data.vote_ledger import read_votes
from nemo_rpo.errors import DataError


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def voted(pair: str, *votes: tuple[str | None, str], **more) -> dict:
    cast = [{"vote": vote} | ({} if who is None else {"annotator": who}) for who, vote in votes]
    return {
        "pair_id": pair,
        "prompt": "p",
        "response_a": f"{pair} a",
        "response_b": f"{pair} bb",
        "votes": cast,
        **more,
    }


def won(chosen: str, rejected: str, annotator: str) -> dict:
    return {"prompt": "p", "chosen": chosen, "rejected": rejected, "annotator": annotator}


def test_votes_are_those_that_training_groups(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for i in range(60):
        cast = [(f"w{k}", ("a", "b", "tie")[generator.integers(3)]) for k in generator.permutation(7)[:3]]
        rows.append(voted(f"x{i % 40}", *cast, **({"gold": "a"} if i % 5 == 0 else {})))
    file = write(tmp_path / "votes.jsonl", rows)
    table, ledger = read_votes(file), PairLedger(group_votes=True)
    for row in read_rows(file):
        ledger.add(row)
    grouped = ledger.close()
    assert (table.pair_id, table.annotators) == (grouped.pair_id, grouped.annotators)
    assert (table.sign == 0).sum() == grouped.ties > 0
    # Training calls the response with most votes chosen; turned like that, the signed votes are the same.
    turned = table.turned_round(grouped.turned)
    signed = turned.sign != 0
    order = np.argsort(turned.pair[signed], kind="stable")
    np.testing.assert_array_equal(turned.sign[signed][order], grouped.sign)
    np.testing.assert_array_equal(turned.annotator[signed][order], grouped.annotator)
    np.testing.assert_array_equal(turned.gold, grouped.gold)
    assert (table.gold != 0).any()


def test_the_order_of_a_winner_is_no_order(tmp_path):
    rows = [won(f"{i} good", f"{i} bad", "w") if i % 2 else won(f"{i} bad", f"{i} good", "v") for i in range(400)]
    table = read_votes(write(tmp_path / "won.jsonl", rows))
    assert table.winner_first().tolist() == [True]
    assert (table.sign == 1).all()
    neutral = table.neutral()
    assert 0.4 < (neutral.sign > 0).mean() < 0.6
    # Whichever response won, a pair's neutral order is the same.
    again = read_votes(
        write(tmp_path / "lost.jsonl", [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows])
    )
    np.testing.assert_array_equal(again.neutral().sign, -neutral.sign)
    np.testing.assert_array_equal(neutral.lengths, again.neutral().lengths)


def test_a_file_with_an_order_of_its_own_keeps_it(tmp_path):
    table = read_votes(write(tmp_path / "votes.jsonl", [voted("x", ("w", "a")), voted("y", ("w", "b"))]))
    assert table.neutral() is table
    assert table.lengths.tolist() == [[3, 4], [3, 4]]
    assert table.where(1) == f"{tmp_path / 'votes.jsonl'}:2"


def test_turned_round_twice_is_the_table(tmp_path):
    table = read_votes(write(tmp_path / "votes.jsonl", [voted("x", ("w", "a"), gold="b"), voted("y", ("v", "b"))]))
    which = np.array([True, False])
    there = table.turned_round(which)
    assert (there.sign.tolist(), there.gold.tolist(), there.lengths[0].tolist()) == ([-1, -1], [1, 0], [4, 3])
    back = there.turned_round(which)
    arrays = [name for name, value in vars(table).items() if isinstance(value, np.ndarray)]
    assert len(arrays) > 12
    for name in arrays:
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))


def test_unnamed_votes_share_an_id_and_are_known(tmp_path):
    table = read_votes(write(tmp_path / "votes.jsonl", [voted("x", ("w", "a"), (None, "b"), (None, "a"))]))
    assert table.annotators.ids == ["all", "w"]
    assert (table.unnamed.tolist(), table.named().tolist()) == ([False, True, True], [False, True])


def test_a_ranking_is_one_label(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b", "c"], "annotator": "w"}
    table = read_votes(write(tmp_path / "rankings.jsonl", [row]))
    assert (table.pairs, len(table), table.annotators.labels.tolist()) == (3, 3, [1])
    assert table.weight.sum() == pytest.approx(1)


def test_opposite_gold_labels_name_the_row(tmp_path):
    rows = [voted("x", ("w", "a"), gold="a"), voted("x", ("w", "a"), gold="b")]
    file = write(tmp_path / "votes.jsonl", rows)
    with pytest.raises(DataError, match=r"votes\.jsonl:2: .*opposite gold"):
        read_votes(file)
    seen: list[DataError] = []
    assert len(read_votes(file, on_error=seen.append)) == 1
    assert len(seen) == 1


def test_details_turn_with_their_pair(tmp_path):
    rows = [voted("x", ("w", "a"), topic="code"), voted("y", ("v", "b"))]
    rows[0]["votes"][0] |= {"shown_first": "b", "seconds": 7, "family": "f"}
    table = read_votes(write(tmp_path / "votes.jsonl", rows))
    assert table.detail("shown_first").tolist() == [-1, 0]
    assert table.turned_round(np.array([True, True])).detail("shown_first").tolist() == [1, 0]
    assert (table.knows("seconds"), table.knows("time")) == (True, False)
    np.testing.assert_array_equal(table.detail("time"), [np.nan, np.nan])
    assert (table.topics, table.topic.tolist()) == (["code"], [0, -1])
    assert (table.annotators.ids, table.family.tolist(), table.families) == (["v", "w"], [-1, 0], ["f"])
