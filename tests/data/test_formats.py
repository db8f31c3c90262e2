"""Every layout of the field gives the same row."""

import gzip
import math
from unittest.mock import ANY

import pytest

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import read_parsed, read_rows, unread_fields
from nemo_rpo.data.rows import NOTHING_ELSE, Vote, VoteDetails
from nemo_rpo.errors import ConfigError, DataError

from .conftest import write_jsonl

USER = [{"role": "user", "content": "Why?"}]
GOOD = [{"role": "assistant", "content": "Because."}]
BAD = [{"role": "assistant", "content": "No."}]
LAYOUTS = {
    "nemo_aligner": {"prompt": "Why?", "chosen_response": "Because.", "rejected_response": "No."},
    "nemo_aligner messages": {"prompt": USER, "chosen_response": "Because.", "rejected_response": "No."},
    "hf": {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    "hf messages": {"prompt": USER, "chosen": GOOD, "rejected": BAD},
    "hf implicit": {"chosen": USER + GOOD, "rejected": USER + BAD},
    "hf ultrafeedback": {"prompt": "Why?", "prompt_id": "7", "chosen": USER + GOOD, "rejected": USER + BAD},
    "hf dialogue": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    },
    "nemo_rl": {"context": USER, "completions": [{"rank": 0, "completion": GOOD}, {"rank": 1, "completion": BAD}]},
    "nemo_rl reversed": {
        "context": USER,
        "completions": [{"rank": 2, "completion": BAD}, {"rank": 1, "completion": GOOD}],
    },
    "votes": {"prompt": "Why?", "response_a": "Because.", "response_b": "No.", "votes": [{"vote": "a"}]},
    "multipref": {
        "text": "Why?",
        "completion_a": "Because.",
        "completion_b": "No.",
        "expert_worker_annotations": [{"overall_pref": "A-is-clearly-better", "evaluator": "e1"}],
    },
}


def one_row(tmp_path, row, keys=None):
    (read,) = read_rows(write_jsonl(tmp_path / "data.jsonl", [row]), keys)
    return read


def plain(text):
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised_and_gives_the_same_preference(tmp_path, name):
    row = one_row(tmp_path, LAYOUTS[name])
    assert (plain(row.prompt).strip(), plain(row.chosen).strip(), plain(row.rejected).strip()) == (
        ("Why?", "Because.", "No.") if name != "hf dialogue" else ("Human: Why?\n\nAssistant:", "Because.", "No.")
    )
    assert [vote.sign for vote in row.votes] == [1]
    assert row.where == f"{tmp_path / 'data.jsonl'}:1"


@pytest.mark.parametrize("name", LAYOUTS)
def test_naming_the_layout_reads_what_detection_reads(tmp_path, name):
    explicit = one_row(tmp_path, LAYOUTS[name], RowFormat(layout=name.split()[0]))
    assert explicit == one_row(tmp_path, LAYOUTS[name])


def test_an_explicit_layout_wins_over_the_fields(tmp_path):
    both = LAYOUTS["hf"] | {"chosen_response": "x", "rejected_response": "y"}
    assert one_row(tmp_path, both).chosen == "x"
    assert one_row(tmp_path, both, RowFormat(layout="hf")).chosen == "Because."


def test_the_layout_in_use_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        one_row(tmp_path, LAYOUTS["nemo_rl"])
    assert "layout 'nemo_rl'" in caplog.text


def test_votes_keep_annotators_ties_and_gold(tmp_path):
    votes = [{"annotator": "w2", "vote": "b"}, {"annotator": 7, "vote": "tie"}, {"vote": "a"}]
    row = one_row(tmp_path, {**LAYOUTS["votes"], "pair_id": "p1", "votes": votes, "gold": "b"})
    assert row.votes == (Vote("w2", -1), Vote("7", 0), Vote(None, 1))
    assert (row.pair_id, row.gold) == ("p1", -1)
    assert one_row(tmp_path, {**LAYOUTS["votes"], "gold": "tie"}).gold is None


def test_multipref_reads_both_groups_of_annotators(tmp_path):
    row = one_row(
        tmp_path,
        {
            **LAYOUTS["multipref"],
            "comparison_id": "c9",
            "normal_worker_annotations": [
                {"overall_pref": "B-is-slightly-better", "evaluator": "n1", "overall_confidence": "fairly-confident"},
                {"overall_pref": "Tie", "evaluator": "n2", "overall_confidence": "random-guess"},
            ],
        },
    )
    assert [vote[:2] for vote in row.votes] == [("n1", -1), ("n2", 0), ("e1", 1)]
    assert [vote.details[1:3] for vote in row.votes] == [(1.0, 2.0), (0.0, 0.0), (2.0, ANY)]
    assert row.pair_id == "c9"


def test_details_are_read_in_every_layout(tmp_path):
    said = {"strength": 2, "confidence": "0.5", "seconds": 9, "time": "2024-05-21T19:18:25Z", "family": 7}
    when = 1716319105.0
    expected = VoteDetails(-1, 2.0, 0.5, 9.0, when, "7")
    for name in ("hf", "hf messages", "nemo_rl"):
        row = one_row(
            tmp_path, {**LAYOUTS[name], **said, "shown_first": "rejected", "gold": "rejected", "topic": "law"}
        )
        assert (row.votes[0].details, row.gold, row.topic) == (expected, -1, "law")
    vote = {"vote": "b", "shown_first": "b", **said}
    row = one_row(tmp_path, {**LAYOUTS["votes"], "votes": [vote, {"vote": "a"}], "topic": 3})
    assert [of.details for of in row.votes] == [expected, NOTHING_ELSE] and row.topic == "3"
    label = {"overall_pref": "A-is-slightly-better", "evaluator": "n", "overall_confidence": "fairly-confident"}
    label |= {"time_spent": 9, "timestamp": "2024-05-21 19:18:25.000000"}
    row = one_row(tmp_path, LAYOUTS["multipref"] | {"expert_worker_annotations": [label]})
    assert row.votes[0].details == VoteDetails(strength=1.0, confidence=2.0, seconds=9.0, time=when)
    [(record, layout, _)] = read_parsed([tmp_path / "data.jsonl"])
    assert unread_fields(record, RowFormat(), layout) == []


@pytest.mark.parametrize("time", [1716319105, 1716319105000, 1716319105e6, "1716319105", "2024-05-21 21:18:25+02:00"])
def test_a_time_is_seconds_since_1970(tmp_path, time):
    assert one_row(tmp_path, {**LAYOUTS["hf"], "time": time}).votes[0].details.time == 1716319105.0


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("shown_first", "left", "'chosen' or 'rejected'"),
        ("strength", -2, "0 or more"),
        ("time", "noon", "seconds since 1970"),
        ("time", -1, "seconds since 1970"),
        ("confidence", "high", "a number"),
        ("gold", "Paris", "'chosen' or 'rejected'"),
        ("topic", ["law"], "an id"),
    ],
)
def test_a_detail_that_means_something_else_is_refused(tmp_path, field, value, problem):
    with pytest.raises(DataError, match=rf"data\.jsonl:1: field '{field}' must be {problem}.*found"):
        one_row(tmp_path, {**LAYOUTS["hf"], field: value})


def test_a_soft_verdict_is_a_vote_and_how_sure_it_is(tmp_path):
    votes = [{"p_a": 0.8}, {"p_a": 0.25}, {"p_a": 0.5}, {"p_a": 0.7, "vote": "tie"}, {"p_a": 1.0, "vote": "a"}]
    row = one_row(tmp_path, {**LAYOUTS["votes"], "votes": [{**vote, "annotator": "j"} for vote in votes]})
    assert [vote.sign for vote in row.votes] == [1, -1, 0, 0, 1]
    confidence = [vote.details.confidence for vote in row.votes]
    assert confidence[:2] == pytest.approx([math.log(4), math.log(3)]) and 13 < confidence[4] < 14
    assert math.isnan(confidence[2]) and math.isnan(confidence[3])
    row = one_row(tmp_path, {**LAYOUTS["hf"], "probability": 0.8})
    assert row.votes[0].details.confidence == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("vote", "problem"),
    [
        ({"p_a": 1.5}, r"field 'votes\[0\].p_a' must be a probability, from 0 to 1, found float 1.5"),
        ({"p_a": 0.8, "vote": "b"}, r"field 'votes\[0\].p_a' is 0.8, and 'vote' says b"),
        (
            {"p_a": 0.8, "confidence": 2},
            "fields 'p_a' and 'confidence' or 'probability' both say how sure",
        ),
        (
            {"vote": "a", "probability": 0.8, "confidence": 2},
            "'confidence' and 'probability' both say how sure the vote",
        ),
        ({"vote": "a", "probability": 80}, "must be a probability, from 0 to 1, found int 80; rename the field"),
    ],
)
def test_a_soft_verdict_that_contradicts_itself_is_refused(tmp_path, vote, problem):
    with pytest.raises(DataError, match=problem):
        one_row(tmp_path, {**LAYOUTS["votes"], "votes": [{"annotator": "j", **vote}]})


def test_a_ranking_of_three_has_no_response_shown_first(tmp_path):
    with pytest.raises(DataError, match="field 'shown_first' speaks of two responses"):
        one_row(tmp_path, {"prompt": "q", "responses": ["a", "b", "c"], "shown_first": "chosen"})


def test_equal_ranks_are_a_tie(tmp_path):
    completions = [{"rank": 0, "completion": GOOD}, {"rank": 0, "completion": BAD}]
    row = one_row(tmp_path, {"context": USER, "completions": completions, "annotator": "w"})
    assert (plain(row.chosen), row.votes) == ("Because.", (Vote("w", 0),))


def test_keys_are_configurable(tmp_path):
    row = one_row(
        tmp_path, {**LAYOUTS["hf"], "worker": 12, "id": "x"}, RowFormat(annotator_key="worker", pair_id_key="id")
    )
    assert (row.votes[0].annotator, row.pair_id) == ("12", "x")


@pytest.mark.parametrize("blank", [None, "", float("nan")])
def test_a_blank_annotator_is_none_and_an_integer_like_float_its_integer(tmp_path, blank):
    assert one_row(tmp_path, {**LAYOUTS["hf"], "annotator": blank}).votes[0].annotator is None
    assert one_row(tmp_path, {**LAYOUTS["hf"], "annotator": 3.0}).votes[0].annotator == "3"


@pytest.mark.parametrize("name", ["hf", "nemo_rl", "votes", "multipref"])
@pytest.mark.parametrize("value", [{}, {"worker": None}, {"worker": ""}])
def test_a_key_that_was_asked_for_must_be_there(tmp_path, name, value):
    row = dict(LAYOUTS[name]) | value
    with pytest.raises(DataError, match=r"data\.jsonl:1: field '.*worker' is (missing|null|blank)"):
        one_row(tmp_path, row, RowFormat(annotator_key="worker"))


def test_columns_take_their_canonical_names(tmp_path):
    row = one_row(tmp_path, {**LAYOUTS["hf"], "score_chosen": 8, "score_rejected": 2.5, "margin": 1.0, "other": 3})
    assert row.columns == {"chosen_reward": 8.0, "rejected_reward": 2.5, "margin": 1.0}
    assert one_row(tmp_path, {**LAYOUTS["nemo_aligner"], "chosen_reward": 1, "rejected_reward": None}).columns == {
        "chosen_reward": 1.0
    }


def test_a_system_message_belongs_to_the_prompt(tmp_path):
    system = [{"role": "system", "content": "Be kind."}]
    row = one_row(tmp_path, {"prompt": "Why?", "chosen": system + USER + GOOD, "rejected": system + USER + BAD})
    assert (row.prompt, row.chosen) == (system + USER, GOOD)


def test_identical_conversations_keep_a_response(tmp_path):
    row = one_row(tmp_path, {"chosen": USER + GOOD, "rejected": USER + GOOD})
    assert (row.prompt, row.chosen, row.rejected) == (USER, GOOD, GOOD)


def test_parquet_and_gzip_read_as_jsonl_does(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    rows = [
        {**LAYOUTS["votes"], "pair_id": f"p{i}", "votes": [{"annotator": f"w{i}", "vote": "b"}]} for i in range(600)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "a.jsonl.gz", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = {name: list(read_rows(tmp_path / name)) for name in ("a.jsonl", "a.jsonl.gz", "a.parquet")}
    strip = {name: [(r.row, r.pair_id, r.chosen, r.votes) for r in rows] for name, rows in read.items()}
    assert strip["a.jsonl"] == strip["a.jsonl.gz"] == strip["a.parquet"]
    assert strip["a.parquet"][599][:2] == (600, "p599")


def test_parquet_messages_lose_the_nulls_that_the_schema_adds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    named = [{"role": "assistant", "content": "No.", "name": "B"}]
    parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": USER, "chosen": GOOD, "rejected": named}]), tmp_path / "a.parquet"
    )
    (row,) = read_rows(tmp_path / "a.parquet")
    assert (row.chosen, row.rejected) == (GOOD, named)


def test_several_files_each_find_their_layout_and_row_numbers(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", ["", LAYOUTS["hf"]])
    second = write_jsonl(tmp_path / "b.jsonl", [LAYOUTS["nemo_rl"]])
    assert [row.where for row in read_rows([first, second])] == [f"{first}:2", f"{second}:1"]


def test_a_byte_order_mark_is_no_damage(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [LAYOUTS["hf"]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(list(read_rows(path))) == 1


BROKEN_ROWS = {
    "{'prompt'": r":2: bad JSON",
    "[1, 2]": r":2: expected a JSON object a line, found a list",
    '{"prompt": "Why?", "chosen": "a"}': r":2: field 'rejected' is missing; fields seen: chosen, prompt",
    '{"prompt": "Why?", "chosen": null, "rejected": "b"}': r":2: field 'chosen' is null",
    '{"prompt": 3, "chosen": "a", "rejected": "b"}': r":2: field 'prompt' must be .* found int 3",
    '{"prompt": "Why?", "chosen": true, "rejected": "b"}': r":2: field 'chosen' must be .* found bool True",
    '{"prompt": [], "chosen": "a", "rejected": "b"}': r":2: field 'prompt' must be .*non-empty list of messages",
    '{"prompt": ["x"], "chosen": "a", "rejected": "b"}': r":2: field 'prompt\[0\]' must be a message",
    '{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}': r":2: field 'prompt\[0\].content' is missing",
    '{"prompt": "Why?", "chosen": "a", "rejected": "b", "annotator": [1]}': r":2: field 'annotator' must be an id",
    '{"prompt": "Why?", "chosen": "a", "rejected": "b", "margin": "big"}': r":2: field 'margin' must be a number",
    '{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}': r":2: field 'prompt' has a lone surrogate",
    '{"chosen": "yes", "rejected": "no"}': r":2: field 'prompt' is missing, .* share no 'Assistant:' turn",
    '{"prompt": "Why?", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}': r":2: .* must both be",
}


@pytest.mark.parametrize("line", BROKEN_ROWS)
def test_a_bad_row_is_named(tmp_path, line):
    path = write_jsonl(tmp_path / "data.jsonl", [LAYOUTS["hf"], line, LAYOUTS["hf"]])
    with pytest.raises(DataError, match=str(path) + BROKEN_ROWS[line]) as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


def test_a_caller_can_collect_the_bad_rows_and_read_on(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [LAYOUTS["hf"], *BROKEN_ROWS, LAYOUTS["hf"]])
    errors = []
    rows = list(read_rows(path, on_error=errors.append))
    assert [row.row for row in rows] == [1, len(BROKEN_ROWS) + 2]
    assert len(errors) == len(BROKEN_ROWS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": USER + GOOD, "rejected": [{"role": "user", "content": "How?"}, *BAD]}, "answer different prompts"),
        ({"chosen": GOOD, "rejected": BAD}, "field 'prompt' is missing"),
        ({"prompt": "How?", "chosen": USER + GOOD, "rejected": USER + BAD}, "field 'prompt' is not in them"),
        (LAYOUTS["nemo_rl"] | {"completions": [{"rank": 0, "completion": GOOD}]}, "holds 1 completions"),
        (LAYOUTS["nemo_rl"] | {"completions": [{"rank": "0"}, {"rank": 1}]}, r"'completions\[0\].rank' must be an int"),
        (LAYOUTS["votes"] | {"votes": [{"vote": "A"}]}, r"'votes\[0\].vote' must be 'a', 'b' or 'tie', found str 'A'"),
        (LAYOUTS["votes"] | {"votes": ["a"]}, r"'votes\[0\]' must be an object"),
        (LAYOUTS["votes"] | {"gold": "c"}, "'gold' must be"),
        (
            LAYOUTS["multipref"] | {"expert_worker_annotations": [{"overall_pref": "C", "evaluator": "e"}]},
            "overall_pref' must be",
        ),
        (LAYOUTS["multipref"] | {"expert_worker_annotations": [{"overall_pref": "Tie"}]}, "evaluator' is missing"),
        (
            {"question": "Why?", "answer": "b"},
            "no known layout has these fields: answer, question; .*model.data.layout",
        ),
        ({}, "no known layout has these fields: none"),
    ],
)
def test_a_row_that_does_not_fit_its_layout_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*" + message):
        one_row(tmp_path, row)


def test_files_that_cannot_be_read_are_named(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    blank = write_jsonl(tmp_path / "blank.jsonl", ["", ""])
    whole = write_jsonl(tmp_path / "whole.jsonl.gz", [{**LAYOUTS["hf"], "n": i} for i in range(3000)]).read_bytes()
    cut, plain_text = tmp_path / "cut.jsonl.gz", tmp_path / "plain.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    plain_text.write_text("{}\n")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"prompt": "Größe"}\n'.encode("latin-1"))
    for path, message in {
        tmp_path / "absent.jsonl": "does not exist; check model.data.data_prefix",
        tmp_path: "is a folder",
        empty: "is empty",
        blank: "has no rows",
        cut: r":\d+: damaged or truncated gzip",
        plain_text: ":1: damaged or truncated gzip",
        latin: ":1: not UTF-8",
    }.items():
        with pytest.raises(DataError, match=str(path) + ".*" + message):
            list(read_rows(path))
    with pytest.raises(DataError, match="no data file given"):
        list(read_rows([]))


def test_a_truncated_gzip_still_says_how_far_it_was_good(tmp_path):
    rows = [{**LAYOUTS["hf"], "annotator": f"w{i}"} for i in range(3000)]
    path = write_jsonl(tmp_path / "cut.jsonl.gz", rows)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r":(\d+): damaged") as caught, gzip.open(path):
        list(read_rows(path))
    assert 1000 < int(str(caught.value).split(".gz:")[1].split(":")[0]) <= 3001


def test_a_truncated_parquet_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    path = tmp_path / "cut.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([LAYOUTS["hf"]] * 500), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet: no Parquet file, or a truncated one"):
        list(read_rows(path))
    # The footer is whole and a page is not: found only when its rows are read.
    path.write_bytes(whole[:8] + b"\xff" * 40 + whole[48:])
    with pytest.raises(DataError, match=r"cut\.parquet:\d+: damaged Parquet"):
        list(read_rows(path))


def test_an_unknown_layout_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.data\.layout is 'trl'; it can be auto, votes, multipref"):
        one_row(tmp_path, LAYOUTS["hf"], RowFormat(layout="trl"))
