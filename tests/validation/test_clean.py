"""The cleaned file: what stays is what was there, what goes is said."""

from __future__ import annotations

import json

import pytest

from nemo_rpo.data.files.read import read_records
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.validation import ValidationSettings, validate, write_clean

from . import planted


def clean(path, out):
    left_out = write_clean(validate(path, ValidationSettings(min_labels=0)), out)
    return [record.fields for record in read_records(out)], left_out


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_the_planted_file_is_clean_afterwards(tmp_path, suffix):
    path = planted.write(tmp_path / "planted.jsonl", [line for line, _ in planted.VOTES])
    rows, left_out = clean(path, tmp_path / f"clean{suffix}")
    assert left_out.written == len(rows) == len(planted.VOTES) - sum(left_out.rows.values())
    errors = ("unknown_layout", "bad_json", "bad_encoding", "bad_field", "pair_id_conflict", "gold_conflict")
    assert left_out.rows == dict.fromkeys((*errors, "empty_completion", "identical_completions"), 1)
    assert left_out.votes == {"duplicate_vote": 1, "contradiction": 2}
    again = validate(tmp_path / f"clean{suffix}", ValidationSettings(min_labels=0)).report
    assert again.errors == 0
    assert not again.findings.counts["duplicate_vote"] and not again.findings.counts["contradiction"]


def test_rows_that_stay_keep_every_field(tmp_path):
    good = {**planted.pair("p", votes="w1:a w2:b"), "models": "x_y", "nested": {"score": [1, 2]}}
    path = planted.write(tmp_path / "file.jsonl", [good, planted.pair("empty", a="")])
    rows, _ = clean(path, tmp_path / "clean.jsonl")
    assert rows == [good]


def test_votes_are_dropped_where_they_stand(tmp_path):
    lines = [planted.pair("p", votes="w1:a w2:b w1:a w3:tie"), planted.pair("q", votes="w1:a w1:b w2:a")]
    rows, left_out = clean(planted.write(tmp_path / "file.jsonl", lines), tmp_path / "clean.jsonl")
    assert [[vote["annotator"] for vote in row["votes"]] for row in rows] == [["w1", "w2", "w3"], ["w2"]]
    assert "1 vote left out: the same label given twice" in left_out.as_text()


def test_both_lists_of_multipref_are_counted_through(tmp_path):
    def told(evaluator, pref):
        return {"evaluator": evaluator, "overall_pref": pref}

    row = {
        "comparison_id": "c",
        "text": "Why?",
        "completion_a": "So.",
        "completion_b": "Because.",
        "normal_worker_annotations": [told("n1", "A-is-clearly-better"), told("n2", "Tie")],
        "expert_worker_annotations": [told("e1", "B-is-slightly-better"), told("n1", "A-is-slightly-better")],
    }
    rows, left_out = clean(planted.write(tmp_path / "file.jsonl", [row]), tmp_path / "clean.jsonl")
    assert left_out.votes == {"duplicate_vote": 1}
    assert rows == [{**row, "expert_worker_annotations": row["expert_worker_annotations"][:1]}]


def test_rows_of_one_label_lose_repeats_and_contradictions(tmp_path):
    turned = planted.label("p", chosen="no", rejected="yes", annotator="w2")
    lines = [
        planted.label("p"),
        planted.label("p"),
        planted.label("p", annotator="w2"),
        turned,
        planted.label("q", annotator=None),
        planted.label("q", chosen="no", rejected="yes", annotator=None),
    ]
    rows, left_out = clean(planted.write(tmp_path / "file.jsonl", lines), tmp_path / "clean.jsonl")
    # Opposite labels without a name may be of two people: they stay.
    assert rows == [lines[0], lines[4], lines[5]]
    assert left_out.rows == {"duplicate_vote": 1, "contradiction": 2}


def test_every_row_of_a_bad_pair_goes(tmp_path):
    lines = [planted.label("p", chosen="", annotator=f"w{i}") for i in range(3)] + [planted.label("q")]
    rows, left_out = clean(planted.write(tmp_path / "file.jsonl", lines), tmp_path / "clean.jsonl")
    assert rows == lines[3:] and left_out.rows == {"empty_completion": 3}


def test_nothing_is_written_where_nothing_is_left(tmp_path):
    path = planted.write(tmp_path / "file.jsonl", [planted.pair("p", a="")])
    with pytest.raises(DataError, match="no row is left"):
        clean(path, tmp_path / "clean.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["file.jsonl"]


def test_files_of_two_layouts_are_not_mixed(tmp_path):
    paths = [
        planted.write(tmp_path / "a.jsonl", [planted.pair("p")]),
        planted.write(tmp_path / "b.jsonl", [planted.label("q")]),
    ]
    with pytest.raises(ConfigError, match=r"different layouts \(hf, votes\); clean them one by one"):
        clean(paths, tmp_path / "clean.jsonl")


def test_a_file_that_is_there_is_kept(tmp_path):
    path = planted.write(tmp_path / "file.jsonl", [planted.pair("p")])
    validation = validate(path)
    with pytest.raises(ConfigError, match=r"file\.jsonl exists; name another file, or say --overwrite"):
        write_clean(validation, path)
    assert write_clean(validation, path, overwrite=True).written == 1
    assert json.loads(path.read_text()) == planted.pair("p")
