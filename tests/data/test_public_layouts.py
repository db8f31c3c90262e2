"""Every public layout is recognised by its fields and says what its file says."""

from __future__ import annotations

import csv
import json
import math

import pytest

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import LAYOUTS, read_parsed, read_rows, unread_fields
from nemo_rpo.data.layouts.public.table import PUBLIC
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.validation import validate

from .conftest import write_jsonl
from .public_rows import BAD, EXAMPLES, GOOD, PROMPT, TEXTS


def plain(text) -> str:
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


def check(row: PreferenceRow, said) -> None:
    assert (plain(row.prompt), *map(plain, row.responses)) == said.texts
    assert tuple(vote[:2] for vote in row.votes) == said.votes
    assert (row.gold, row.topic) == (said.gold, said.topic)
    if row.votes:
        known = {k: v for k, v in row.votes[0].details._asdict().items() if v is not None and v == v and v != 0}
        assert known == said.details
    rewards = row.rewards or tuple(row.columns.get(f"{side}_reward", math.nan) for side in ("chosen", "rejected"))
    assert tuple(r for r in rewards if r == r) == said.rewards


def test_there_is_an_example_of_each():
    assert {name.split()[0] for name in EXAMPLES} == {*PUBLIC, "vote_rows"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_of_each_says_what_it_says(tmp_path, name):
    rows, said = EXAMPLES[name]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    parsed = list(read_parsed([path]))
    assert {p.layout for p in parsed} == {name.split()[0]}
    assert len(parsed) == len(said)
    for one, expected in zip(parsed, said, strict=True):
        check(one.row, expected)
    explicit = [row for row in read_rows(path, RowFormat(layout=name.split()[0]))]
    assert explicit == [p.row for p in parsed]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_array_of_json_is_the_same_file(tmp_path, name):
    rows, said = EXAMPLES[name]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, indent=2))
    for row, expected in zip(read_rows(path), said, strict=True):
        check(row, expected)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("vote_rows") or name == "crowd_kit"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_tables_of_platforms(tmp_path, name, suffix):
    rows, said = EXAMPLES[name]
    path = tmp_path / f"data.{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    for row, expected in zip(read_rows(path), said, strict=True):
        check(row, expected)


def test_what_is_left_out_is_counted(tmp_path):
    unread = {}
    for name in ("label_studio", "argilla", "prodigy", "distilabel", "vote_rows of mturk"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", EXAMPLES[name][0])
        unread[name] = validate(path).report.unread
    assert unread == {
        "label_studio": {
            "predictions": 1,
            "annotations[] that were cancelled": 1,
            "annotations[] without an answer": 1,
        },
        "argilla": {"preference.suggestion": 1, "preference.suggestion.agent": 1, "answers with status discarded": 1},
        "prodigy": {"answers that ignore": 1},
        "distilabel": {"generations without a rating": 1},
        "vote_rows of mturk": {"assignments that were rejected": 1},
    }


def test_a_record_of_several_comparisons_is_named_once(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [EXAMPLES["community_alignment"][0][0] | {"wave": 2}])
    report = validate(path).report
    assert (report.rows, report.pairs, report.unread) == (4, 4, {"wave": 1})


@pytest.mark.parametrize("name", ["helpsteer3", "helpsteer2_preference", "ultrafeedback", "nectar", "webgpt", "shp"])
def test_a_place_in_a_list_is_no_person(tmp_path, name):
    path = write_jsonl(tmp_path / "h.jsonl", EXAMPLES[name][0])
    with pytest.raises(DataError, match=f"h.jsonl:1: layout '{name}' names no annotator"):
        list(read_rows(path, RowFormat(annotator_key="worker")))
    path = write_jsonl(tmp_path / "h.jsonl", [row | {"worker": "w1"} for row in EXAMPLES[name][0]])
    assert {v.annotator for r in read_rows(path, RowFormat(annotator_key="worker")) for v in r.votes} == {"w1"}


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("label_studio", {"data": {"x": "y"}}, "no prompt among the fields of data"),
        ("arena", {"winner": "model_c"}, "field 'winner' must be a, b or tie"),
        ("arena 140k", {"conversation_a": [{"role": "user", "content": [{"type": "image"}]}]}, "only texts"),
        ("coval", {"ranking": "A>Z"}, "ranks Z, and the responses are A, B, C"),
        ("coval", {"ranking": "A best"}, "must be a ranking such as"),
        ("alpaca_eval", {"preference": 3}, "field 'preference' must be from 1"),
        ("summarize_from_feedback", {"choice": 2}, "field 'choice' must be 0 or 1"),
        ("community_alignment", {"first_turn_preferred_response": "e"}, "must be one of a, b, c, d"),
        ("prodigy", {"accept": ["z"]}, "the id of an option"),
        ("distilabel", {"ratings": [1]}, "holds 1 numbers for 3 generations"),
        ("vote_rows", {"vote": "better"}, "field 'vote' must be a, b or tie"),
        ("vote_rows", {"vote": 0}, "field 'vote' must be a, b or tie"),
        ("argilla", {"preference.responses": ["neutral", "tie", "tie"]}, r"field 'preference\[0\].value' must be"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, change, problem):
    path = write_jsonl(tmp_path / "data.jsonl", [EXAMPLES[name][0][0] | change])
    with pytest.raises(DataError, match=f"data.jsonl:1: .*{problem}"):
        list(read_rows(path))


def test_two_ground_truths_that_differ_are_refused(tmp_path):
    row = json.loads(json.dumps(EXAMPLES["label_studio"][0][0]))
    row["annotations"][1]["ground_truth"] = True
    with pytest.raises(DataError, match="contradict one another"):
        list(read_rows(write_jsonl(tmp_path / "t.jsonl", [row])))


def test_rows_of_a_conversation_that_are_apart_are_refused(tmp_path):
    rows, _ = EXAMPLES["prism"]
    path = write_jsonl(tmp_path / "p.jsonl", [*rows, rows[0] | {"conversation_id": "c2"}, rows[0]])
    errors = []
    assert len(list(read_rows(path, on_error=errors.append))) == 2
    alone, apart = map(str, errors)
    assert "p.jsonl:5: a conversation without two responses" in alone
    assert "p.jsonl:6: conversation_id 'c1' stands in earlier rows too" in apart


COLUMNS = {"annotator": "Who", "prompt": "q", "response_a": "l", "response_b": "r", "vote": "best", "seconds": "t"}


def test_columns_give_a_table_our_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"Who,q,l,r,best,t,x\nw1,{PROMPT},{GOOD},{BAD},Right,5,1\n,{PROMPT},{GOOD},{BAD},a,,\n")
    keys = RowFormat(columns=COLUMNS)
    errors = []
    [row] = read_rows(path, keys, errors.append)
    assert (row.prompt, row.chosen, row.rejected) == TEXTS
    assert row.votes[0][:2] == ("w1", -1) and row.votes[0].details.seconds == 5.0
    assert "field 'annotator' is missing" in str(errors[0]), "a name that was given is a promise"
    [(record, layout, _)] = read_parsed([path], keys, lambda error: None)
    assert (layout, unread_fields(record, keys, layout)) == ("vote_rows", ["x"])


def test_columns_reach_into_objects_and_into_every_layout(tmp_path):
    row = {"meta": {"by": "w1", "q": PROMPT}, "good": GOOD, "bad": BAD}
    keys = RowFormat(columns={"annotator": "meta.by", "prompt": "meta.q", "chosen": "good", "rejected": "bad"})
    [(_, layout, read)] = read_parsed([write_jsonl(tmp_path / "t.jsonl", [row])], keys)
    assert (layout, read.prompt, read.chosen, read.votes[0].annotator) == ("hf", PROMPT, GOOD, "w1")
    task = {"data": {"q": PROMPT, "l": GOOD, "r": BAD}, "annotations": EXAMPLES["label_studio"][0][0]["annotations"]}
    keys = RowFormat(columns={"prompt": "data.q", "response_a": "data.l", "response_b": "data.r"})
    [(_, layout, read)] = read_parsed([write_jsonl(tmp_path / "t.jsonl", [task])], keys)
    assert (layout, read.prompt, read.chosen, len(read.votes)) == ("label_studio", PROMPT, GOOD, 3)


def test_columns_that_mean_nothing_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", EXAMPLES["vote_rows"][0])
    with pytest.raises(ConfigError, match="names 'anotator', which no layout reads"):
        list(read_rows(path, RowFormat(columns={"anotator": "x"})))
    with pytest.raises(DataError, match="no row has the field 'second'"):
        list(read_rows(path, RowFormat(columns={"seconds": "second"})))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1} {"b": 2}]', "t.json:2: bad JSON .no comma"),
        ('[{"a": 1}, ', "t.json:2: bad JSON"),
        ('[{"a": 1}', "t.json:2: bad JSON .the array does not end"),
        ('[{"a": 1},]', "t.json:2: bad JSON"),
        ('[{"a": 1}] x', "something stands behind"),
        ("[]", "has no rows"),
        ("[" * 100_000, "t.json:1: bad JSON .nested too deep"),
    ],
)
def test_a_damaged_array_is_one_line(tmp_path, text, problem):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        list(read_rows(path, on_error=lambda error: None))


def test_lines_of_json_under_the_name_of_json(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("\n" + json.dumps(EXAMPLES["vote_rows"][0][0]) + "\n")
    assert len(list(read_rows(path))) == 1 and "vote_rows" in LAYOUTS
