"""Whatever a file says comes back from every layout and file format that is written, or is counted as lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_rpo.conversion import WRITERS, convert
from nemo_rpo.conversion.tasks import LabelTask, write_tasks
from nemo_rpo.data.files.read import as_paths
from nemo_rpo.data.formats import read_parsed, read_rows
from nemo_rpo.data.rows import Vote, VoteDetails
from nemo_rpo.errors import ConfigError

# Which file a layout goes to in its tool; and what it cannot hold.
FILES = {"label_studio": "out.json", "argilla": "out.parquet", "vote_rows": "out.csv", "crowd_kit": "out.csv"}
DETAILS = VoteDetails._fields
LOSES = {
    "multipref": {"shown_first", "family", "gold", "strength"},  # a strength that nobody stated becomes "clearly"
    "label_studio": {"family"},
    "argilla": {*DETAILS, "gold", "topic"},
    "crowd_kit": {"ties", "topic"},
    **{name: {"ties"} for name in ("hf", "rankings", "nemo_aligner")},
}
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)
AWKWARD = st.sampled_from(["=1+1", "'=x", "-5", "@", "a,b", 'say "x"', "two\nlines", "\r\n", " x", "left", "tie", "a"])
WORDS = TEXT | AWKWARD.map(lambda text: f"{text}.") | AWKWARD
NUMBER = st.floats(0, 1e6, width=32)


@st.composite
def vote(draw) -> dict:
    said = {
        "annotator": draw(st.sampled_from(["w1", "w 2", "3", "ü"])),
        "vote": draw(st.sampled_from(["a", "b", "tie"])),
    }
    known = {
        "shown_first": st.sampled_from("ab"),
        "strength": st.sampled_from([1.0, 2.0]),
        "confidence": st.sampled_from([0.0, 1.0, 3.0]),
        "seconds": NUMBER,
        "time": st.integers(0, 2**31).map(float),
        "family": st.sampled_from(["llama", "7"]),
    }
    names = draw(st.sets(st.sampled_from(sorted(known))))
    return said | {name: draw(known[name]) for name in sorted(names)}


@st.composite
def rows(draw) -> list[dict]:
    found = []
    for i in range(draw(st.integers(1, 3))):
        first, second = draw(st.lists(WORDS, min_size=2, max_size=2, unique=True))
        cast = draw(st.lists(vote(), min_size=1, max_size=3, unique_by=lambda vote: vote["annotator"]))
        row = {"pair_id": f"p{i}", "prompt": f"q{i} {draw(WORDS)}", "response_a": first, "response_b": second}
        about = {"gold": draw(st.sampled_from([None, "a", "b"])), "topic": draw(st.sampled_from([None, "law"]))}
        found.append(row | {"votes": cast} | {k: v for k, v in about.items() if v})
    return found


def words(text) -> str:
    return text if isinstance(text, str) else " ".join(message["content"] for message in text)


def said(path: Path, loses: set[str]) -> dict:
    """What each vote says, in terms of the texts; without what the layout loses."""
    found = {}
    for _, _, row in read_parsed(as_paths(path)):
        side = {1: words(row.chosen), -1: words(row.rejected), 0: None, None: None}
        for of in row.votes:
            if "ties" in loses and not of.sign:
                continue
            details = of.details._asdict() | {"shown_first": side[of.details.shown_first]}
            if not of.sign and "strength" in loses:
                details["strength"] = math.nan
            about = {"gold": side[row.gold], "topic": row.topic} | details
            known = tuple(sorted((k, v) for k, v in about.items() if k not in loses and v is not None and v == v))
            found[row.pair_id, of.annotator] = (
                words(row.prompt),
                sorted(map(words, row.responses)),
                side[of.sign],
                known,
            )
    return found


@pytest.mark.parametrize("to", WRITERS)
@given(rows=rows())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_there_and_back(tmp_path_factory, to, rows):
    folder = tmp_path_factory.mktemp("trip")
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loses = LOSES.get(to, set())
    votes = [vote for row in rows for vote in row["votes"]]
    if "ties" in loses and all(vote["vote"] == "tie" for vote in votes):
        return  # nothing is left to write
    there = folder / FILES.get(to, "out.jsonl")
    done = convert(source, to, there)
    assert said(there, loses) == said(source, loses)
    for name in loses - {"ties", "gold", "topic", "strength"}:
        held = sum(name in vote for vote in votes if not ("ties" in loses and vote["vote"] == "tie"))
        assert done.lost[f"values of '{name}' (the layout has no place for them)"] == held
    assert done.lost["ties (the layout names a winner)"] == ("ties" in loses) * sum(v["vote"] == "tie" for v in votes)


TASKS = [
    LabelTask("p1", "q", "=x", "y", {"ask": "w3"}),
    LabelTask("p2", [{"role": "user", "content": "q"}], "a\nb", [{"role": "assistant", "content": "z"}]),
]


@pytest.mark.parametrize(("tool", "name"), [("label_studio", "t.json"), ("argilla", "t.jsonl"), ("csv", "t.csv")])
def test_tasks_come_back_with_their_answers(tmp_path, tool, name):
    path = tmp_path / name
    assert write_tasks(path, TASKS, tool) == 2
    if tool == "csv":
        text = path.read_text(encoding="utf-8")
        assert text.splitlines()[0] == "pair_id,prompt,response_a,response_b,vote,ask"
        unanswered = list(read_rows(path))
        assert [row.votes for row in unanswered] == [(), ()] and unanswered[0].chosen == "=x"
        path.write_text(text.replace(",,w3", ",b,w3"), encoding="utf-8")
    else:
        tasks = json.loads(path.read_text()) if tool == "label_studio" else [*map(json.loads, path.open())]
        answer = {"from_name": "preference", "type": "pairwise", "value": {"selected": "right"}}
        if tool == "label_studio":
            tasks[0]["annotations"] = [{"completed_by": 5, "result": [answer]}]
            tasks[1]["annotations"] = []
        else:
            tasks[0] |= {"preference.responses": ["response_b"], "preference.responses.users": ["5"]}
            tasks[1] |= {"preference.responses": [], "preference.responses.users": []}
        path.write_text(json.dumps(tasks) if tool == "label_studio" else "\n".join(map(json.dumps, tasks)))
    first, second = read_rows(path)
    assert (first.pair_id, second.pair_id) == ("p1", "p2")
    assert [vote.sign for vote in first.votes] == [-1] and second.votes == ()
    assert (second.prompt, second.rejected) == ("q", "z")


def test_tasks_of_an_unknown_tool_or_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'doccano' is no label tool"):
        write_tasks(tmp_path / "t.json", TASKS, "doccano")
    with pytest.raises(ConfigError, match=r"a file for csv ends in \.csv"):
        write_tasks(tmp_path / "t.json", TASKS, "csv")
    assert list(tmp_path.iterdir()) == []


def test_a_vote_turned_twice_is_itself():
    vote = Vote("w", 1, VoteDetails(shown_first=-1, seconds=3.0))
    assert vote.turned() != vote and vote.turned().turned() == vote
