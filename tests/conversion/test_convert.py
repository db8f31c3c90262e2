"""Every layout to every other: who said what about which pair stays the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from public_sets import pandalm

from nemo_rpo.conversion import WRITERS, WRITERS_OF_ALONE, convert
from nemo_rpo.conversion.pieces import GOLD, TIES, UNLABELLED
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.formats import LAYOUTS, read_parsed, read_rows
from nemo_rpo.data.pairs import PairLedger
from nemo_rpo.errors import ConfigError, DataError


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(path: Path) -> set[tuple]:
    """(pair, annotator, preferred text, other text) of every label, ties in the order of the texts."""
    labels = set()
    for _, _, row in read_parsed(as_paths(path, folders=True)):
        for vote in row.votes:
            sides = [words(row.chosen), words(row.rejected)]
            sides = sides[::-1] if vote.sign < 0 else sides if vote.sign else ["tie", *sorted(sides)]
            labels.add((row.pair_id, words(row.prompt).strip(), vote.annotator, *sides))
    return labels


def words(text) -> str:
    return text if isinstance(text, str) else " ".join(message["content"] for message in text)


def pair(name: str, votes: str, **more) -> dict:
    cast = [dict(zip(("annotator", "vote"), vote.split(":"), strict=True)) for vote in votes.split()]
    a, b = f"{name} first", f"{name} second"
    return {"pair_id": name, "prompt": f"{name}?\n", "response_a": a, "response_b": b, "votes": cast, **more}


PAIRS = [pair("p1", "w1:a w2:b w3:a"), pair("p2", "w2:b"), pair("p3", "w1:b w3:b w2:a")]
TIED = [*PAIRS, pair("p4", "w1:tie w2:b"), pair("p5", "w3:tie")]


PER_PAIR = ("votes", "multipref", "label_studio", "argilla")
NO_TIES = ("hf", "nemo_aligner", "rankings", "crowd_kit")


def test_what_is_written_is_read():
    assert WRITERS.keys() <= LAYOUTS.keys()
    assert {name for name, of in LAYOUTS.items() if not of.public} <= WRITERS.keys() | WRITERS_OF_ALONE.keys()


@pytest.mark.parametrize(("there", "back"), list(itertools.product(WRITERS, WRITERS)))
def test_every_layout_to_every_other(there, back, tmp_path):
    source = write(tmp_path / "source.jsonl", PAIRS)
    convert(source, there, tmp_path / "there.jsonl")
    done = convert(tmp_path / "there.jsonl", back, tmp_path / "back.jsonl")
    assert said(tmp_path / "there.jsonl") == said(tmp_path / "back.jsonl") == said(source)
    assert done.pairs == 3 and done.written == (3 if back in PER_PAIR else 7)
    if (there, back) != ("multipref", "argilla"):  # how strongly, which Argilla has no place for
        assert not sum(done.lost.values())
    # The file is in the layout it was asked for, not merely readable.
    assert len(list(read_rows(tmp_path / "back.jsonl", RowFormat(layout=back)))) == done.written


@pytest.mark.parametrize("to", WRITERS)
def test_ties_stay_where_a_layout_can_say_them(to, tmp_path):
    source = write(tmp_path / "source.jsonl", TIED)
    done = convert(source, to, tmp_path / "out.jsonl")
    silent = to in NO_TIES
    assert done.lost[TIES] == (2 if silent else 0)
    expected = {label for label in said(source) if label[3] != "tie"} if silent else said(source)
    assert said(tmp_path / "out.jsonl") == expected


def test_labels_of_one_pair_come_together_whatever_side_is_called_chosen(tmp_path):
    rows = [
        {"prompt": "q", "chosen": "x", "rejected": "y", "annotator": "w1"},
        {"prompt": "r", "chosen": "u", "rejected": "v", "annotator": "w1"},
        {"prompt": "q", "chosen": "y", "rejected": "x", "annotator": "w2"},
    ]
    convert(write(tmp_path / "labels.jsonl", rows), "votes", tmp_path / "votes.jsonl")
    first, second = (json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines())
    assert (first["response_a"], first["response_b"]) == ("x", "y")
    assert first["votes"] == [{"annotator": "w1", "vote": "a"}, {"annotator": "w2", "vote": "b"}]
    assert second["votes"] == [{"annotator": "w1", "vote": "a"}]


def test_side_columns_turn_with_the_pair(tmp_path):
    rows = [pair("p", "w1:b", reward_a=1.0, reward_b=3.0, margin=-2.0, win_rate=0.25)]
    convert(write(tmp_path / "votes.jsonl", rows), "nemo_aligner", tmp_path / "winner.jsonl")
    (row,) = (json.loads(line) for line in (tmp_path / "winner.jsonl").read_text().splitlines())
    found = {name: row[name] for name in ("chosen_reward", "rejected_reward", "margin", "win_rate")}
    assert found == {"chosen_reward": 3.0, "rejected_reward": 1.0, "margin": 2.0, "win_rate": 0.75}
    convert(tmp_path / "winner.jsonl", "votes", tmp_path / "back.jsonl")
    (row,) = read_rows(tmp_path / "back.jsonl")
    assert row.chosen == "p second" and row.columns["chosen_reward"] == 3.0


def test_what_a_layout_cannot_hold_is_counted(tmp_path):
    source = write(tmp_path / "source.jsonl", [pair("p", "w1:a", gold="a"), pair("q", "")])
    done = convert(source, "hf", tmp_path / "out.jsonl")
    assert (done.lost[GOLD], done.lost[UNLABELLED], done.written) == (0, 1, 1)
    assert convert(source, "multipref", tmp_path / "multipref.jsonl").lost[GOLD] == 1
    done = convert(source, "votes", tmp_path / "votes.jsonl")
    assert not sum(done.lost.values()) and [row.gold for row in read_rows(tmp_path / "votes.jsonl")] == [1, None]


DETAILS = {"strength": 0.1, "confidence": 2.0, "seconds": 12.25, "time": 1716319105.7351, "family": "llama"}


def of_every_vote(path: Path) -> dict[tuple, tuple]:
    """What stands beside each vote, and gold, told by texts: which was shown first, which is right."""
    found = {}
    for _, _, row in read_parsed(as_paths(path)):
        side = {1: words(row.chosen), -1: words(row.rejected), 0: None, None: None}
        for vote in row.votes:
            shown = side[vote.details.shown_first]
            found[row.pair_id, vote.annotator] = (shown, *vote.details[1:], side[row.gold], row.topic)
    return found


HOLD_DETAILS = [name for name in WRITERS if name not in ("label_studio", "argilla", "crowd_kit")]


@pytest.mark.parametrize(("there", "back"), list(itertools.product(HOLD_DETAILS, ["votes", "hf"])))
def test_what_is_known_of_a_vote_goes_where_the_layout_can_say_it(there, back, tmp_path):
    rows = [pair("p1", "w1:a w2:b", gold="b", topic="law"), pair("p2", "w1:b w3:a"), pair("p3", "w2:b", gold="a")]
    for row in rows:
        for i, vote in enumerate(row["votes"]):
            vote |= DETAILS | {"shown_first": "ba"[i], "seconds": 10.0 + i}
    source = write(tmp_path / "source.jsonl", rows)
    done = convert(source, there, tmp_path / "there.jsonl")
    convert(tmp_path / "there.jsonl", back, tmp_path / "back.jsonl")
    expected, found = of_every_vote(source), of_every_vote(tmp_path / "back.jsonl")
    assert of_every_vote(tmp_path / "there.jsonl") == found
    if there != "multipref":
        assert found == expected and not sum(done.lost.values())
        return
    names = {f"values of '{name}' (the layout has no place for them)": 5 for name in ("shown_first", "family")}
    assert +done.lost == {GOLD: 2, "strengths of votes (multipref knows 1 and 2)": 5, **names}
    for vote, (shown, _, confidence, seconds, time, family, gold, topic) in found.items():
        assert (shown, family, gold) == (None, None, None)
        assert (confidence, seconds, topic) == (expected[vote][2], expected[vote][3], expected[vote][7])
        assert time == pytest.approx(expected[vote][4], abs=1e-6)


def test_text_becomes_messages_for_nemo_rl(tmp_path):
    convert(write(tmp_path / "source.jsonl", PAIRS[1:2]), "nemo_rl", tmp_path / "out.jsonl")
    (row,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["context"] == [{"role": "user", "content": "p2?\n"}]
    assert row["completions"][0] == {"rank": 0, "completion": [{"role": "assistant", "content": "p2 second"}]}


def test_an_answer_of_several_messages_has_no_place_in_nemo_aligner(tmp_path):
    turn = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    rows = [{"prompt": [{"role": "user", "content": "q"}], "chosen": [*turn, turn[0]], "rejected": turn[:1]}]
    source = write(tmp_path / "source.jsonl", rows)
    with pytest.raises(DataError, match=r"source\.jsonl:1: layout nemo_aligner holds one answer a side"):
        convert(source, "nemo_aligner", tmp_path / "out.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["source.jsonl"], "nothing is left behind"


@pytest.mark.parametrize("out", ["out.jsonl", "out.jsonl.gz", "out.parquet", "out"])
@pytest.mark.parametrize("to", WRITERS)
def test_every_format_of_file(to, out, tmp_path):
    if out == "out":
        pytest.importorskip("datasets", reason="saved data sets need datasets: pip install 'nemo-rpo[data]'")
    source = write(tmp_path / "source.jsonl", PAIRS)
    convert(source, to, tmp_path / out)
    assert said(tmp_path / out) == said(source)
    convert(tmp_path / out, "votes", tmp_path / "back.jsonl")
    assert said(tmp_path / "back.jsonl") == said(source)


def test_a_hugging_face_folder_is_one(tmp_path):
    datasets = pytest.importorskip("datasets", reason="saved data sets need datasets: pip install 'nemo-rpo[data]'")
    convert(write(tmp_path / "source.jsonl", PAIRS), "hf", tmp_path / "saved")
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    assert len(saved) == 7 and set(saved.column_names) == {"pair_id", "prompt", "chosen", "rejected", "annotator"}
    convert(tmp_path / "source.jsonl", "votes", tmp_path / "saved", overwrite=True)
    assert len(datasets.load_from_disk(str(tmp_path / "saved"))) == 3


def test_rows_that_disagree_about_gold_are_refused(tmp_path):
    rows = [pair("p", "w1:a", gold="a"), pair("p", "w2:a", gold="b")]
    with pytest.raises(DataError, match=r"source\.jsonl:2: the pair has the opposite gold label"):
        convert(write(tmp_path / "source.jsonl", rows), "votes", tmp_path / "out.jsonl")


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--to is 'alpaca'; it can be votes, multipref"):
        convert(write(tmp_path / "source.jsonl", PAIRS), "alpaca", tmp_path / "out.jsonl")


def test_training_sees_the_same_pairs_in_every_layout(shared_data, tmp_path):
    source = write(tmp_path / "source.jsonl", list(pandalm(shared_data / "pandalm_testset")))

    def table(path):
        ledger = PairLedger(group_votes=True)
        for row in read_rows(path):
            ledger.add(row)
        return ledger.close()

    expected = table(source)
    balance = {name: abs(sum(expected.sign[a:b])) for name, a, b in _spans(expected)}
    for to in WRITERS:
        convert(source, to, tmp_path / f"{to}.parquet")
        found = table(tmp_path / f"{to}.parquet")
        assert found.annotators.ids == expected.annotators.ids
        assert found.annotators.labels.tolist() == expected.annotators.labels.tolist()
        seen = {name: abs(sum(found.sign[a:b])) for name, a, b in _spans(found)}
        assert seen == {name: value for name, value in balance.items() if name in seen}
        assert len(seen) == (992 if to in NO_TIES else 999)
        assert sum(1 for _ in read_records(tmp_path / f"{to}.parquet")) >= 999 - 7


def _spans(table):
    return zip(table.pair_id, table.vote_start[:-1], table.vote_start[1:], strict=True)
