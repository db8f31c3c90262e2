"""``--gold FILE``: whichever way its rows name their pairs, the same labels come out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nemo_rpo.crowd.anchors_file import read_gold
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.errors import DataError, RowError

from . import crowds

WORD = {1: "a", -1: "b", 0: "tie"}
GOLD = [1, -1, -1, 0, 1, -1]


def texts(i: int) -> tuple[str, str, str]:
    return f"question {i}", f"one {i}", f"other {i}"


def votes(tmp_path, with_ids: bool) -> VoteReader:
    rows = []
    for i in range(len(GOLD) + 1):
        prompt, a, b = texts(i)
        said = [{"annotator": "ann", "vote": "b" if i % 2 else "a"}]
        named = {"pair_id": f"p{i}"} if with_ids else {}
        rows.append({**named, "prompt": prompt, "response_a": a, "response_b": b, "votes": said})
    reader = VoteReader()
    reader.read(crowds.write(tmp_path / "votes.jsonl", rows))
    return reader


def row(kind: str, i: int, gold: int) -> dict:
    prompt, a, b = texts(i)
    if i % 2:  # either order
        a, b, gold = b, a, -gold
    said = {"gold": WORD[gold]}
    return {
        "id": {"pair_id": f"p{i}", "gold": WORD[gold * (-1) ** i]},
        "bare": {"prompt": prompt, "response_a": a, "response_b": b, **said},
        "strange id": {"pair_id": f"x{i}", "prompt": prompt, "response_a": a, "response_b": b, **said},
        "ranking": {"prompt": prompt, "responses": [a, b], **said},
        "winner": {"prompt": prompt, "chosen": a, "rejected": b, **said},
        "in its own words": {
            "prompt": prompt,
            "chosen": a,
            "rejected": b,
            "gold": {"a": "chosen", "b": "rejected"}.get(WORD[gold], "tie"),
        },
        "votes": {"prompt": prompt, "response_a": a, "response_b": b, "votes": [], **said},
    }[kind]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("kind", ["id", "bare", "strange id", "ranking", "winner", "in its own words", "votes"])
def test_rows_of_every_kind_say_the_same(kind, with_ids, suffix, tmp_path):
    if (kind == "id" and not with_ids) or (kind == "strange id" and with_ids):
        pytest.skip("there is nothing by which the pairs could be found")
    if suffix == ".csv" and kind in ("ranking", "votes"):
        pytest.skip("CSV holds no lists")
    reader = votes(tmp_path, with_ids)
    rows = [row(kind, i, gold) for i, gold in enumerate(GOLD)]
    path = tmp_path / f"gold{suffix}"
    (crowds.write_csv if suffix == ".csv" else crowds.write)(path, rows)
    assert read_gold(path, reader) == 0
    np.testing.assert_array_equal(reader.close().gold, [*GOLD, 0])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("kind", ["id", "bare"])
def test_a_table_may_be_half_filled_in(kind, suffix, tmp_path):
    reader = votes(tmp_path, kind == "id")
    blank = {"gold": "" if suffix == ".csv" else None}
    rows = [row(kind, i, gold) | (blank if i % 2 else {}) for i, gold in enumerate(GOLD)]
    path = tmp_path / f"gold{suffix}"
    (crowds.write_csv if suffix == ".csv" else crowds.write)(path, rows)
    assert read_gold(path, reader) == 0
    np.testing.assert_array_equal(reader.close().gold, [0 if i % 2 else gold for i, gold in enumerate([*GOLD, 0])])


def test_what_the_votes_call_otherwise_may_have_its_usual_name(tmp_path):
    rows = []
    for i in range(len(GOLD) + 1):
        prompt, a, b = texts(i)
        rows.append({"qid": f"q{i}", "prompt": prompt, "response_a": a, "response_b": b, "best": "a", "who": "ann"})
    reader = VoteReader(RowFormat(columns={"annotator": "who", "pair_id": "qid", "vote": "best"}))
    reader.read(crowds.write(tmp_path / "votes.jsonl", rows))
    path = crowds.write(tmp_path / "gold.jsonl", [row("bare", i, gold) for i, gold in enumerate(GOLD)])
    assert read_gold(path, reader) == 0
    np.testing.assert_array_equal(reader.close().gold, [*GOLD, 0])


def test_texts_that_two_ids_share_are_known_under_both(tmp_path):
    prompt, a, b = texts(0)
    pair = {"prompt": prompt, "response_a": a, "response_b": b}
    said = [{"annotator": "ann", "vote": "a"}]
    turned = {"prompt": prompt, "response_a": b, "response_b": a}
    rows = [{"pair_id": "p", **pair, "votes": said}, {"pair_id": "q", **turned, "votes": said}]
    reader = VoteReader()
    reader.read(crowds.write(tmp_path / "votes.jsonl", rows))
    assert read_gold(crowds.write(tmp_path / "gold.jsonl", [{**pair, "gold": "a"}]), reader) == 0
    np.testing.assert_array_equal(reader.close().gold, [1, -1])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "question 0", "gold": "a"}], "gold.jsonl:1: the row names no pair"),
        ([row("bare", 0, 1), {"prompt": "x"}], "gold.jsonl:2: "),
        ([{**row("bare", 0, 1), "gold": "left"}], "gold.jsonl:1: field 'gold' must be"),
        ([{**row("bare", 0, 1), "gold": None}], "no row of .*gold.jsonl says what is right: give rows a field 'gold'"),
        ([{**row("bare", 0, 1), "prompt": "another"}], "no gold label for any pair"),
        ([row("bare", 0, 0), row("bare", 1, 0)], "gold.jsonl says tie of every pair of the votes"),
        ([row("bare", 0, 1), row("bare", 0, -1)], "opposite gold label"),
    ],
)
def test_a_row_that_says_nothing_is_named(rows, said, tmp_path):
    with pytest.raises((DataError, RowError), match=said):
        read_gold(crowds.write(tmp_path / "gold.jsonl", rows), votes(tmp_path, False))
    assert json.loads((tmp_path / "gold.jsonl").read_text().splitlines()[0]) == rows[0]
