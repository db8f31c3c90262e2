"""No command writes over what it reads, whatever else it is told."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

from nemo_rpo.cli import main

JUDGES = "judges: [{name: short, kind: program, call: 'nemo_rpo.judging.programs.answers:exact_answer'}]\n"


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    votes = [{"annotator": f"w{k}", "vote": "a"} for k in range(2)]
    rows = [
        {"pair_id": f"p{i}", "prompt": f"q{i}?", "response_a": "yes", "response_b": "no", "votes": votes}
        for i in range(5)
    ]
    battles = [{"model_a": "x", "model_b": "y", "winner": w} for w in "aba"]
    (tmp_path / "judged").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    named = {name: rows for name in ("pairs.jsonl", "judged/votes.jsonl", "saved/pairs.jsonl")}
    for name, content in (named | {"battles.jsonl": battles}).items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "bare.jsonl").write_text(json.dumps({**rows[0], "votes": []}) + "\n")
    (tmp_path / "judges.yaml").write_text(JUDGES)
    (tmp_path / "link.csv").symlink_to("pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "convert pairs.jsonl --to hf --out pairs.jsonl --overwrite",
        "convert pairs.jsonl --to hf --out ./link.csv --overwrite",
        "convert battles.jsonl pairs.jsonl --to hf --out pairs.jsonl --overwrite",
        "convert saved/pairs.jsonl --to hf --out saved --overwrite",
        "convert saved --to hf --out saved/state.json --overwrite",
        "convert pairs.jsonl --pairs-from-scores difference --to hf --out pairs.jsonl --overwrite",
        "validate pairs.jsonl --fix pairs.jsonl --overwrite",
        "annotators pairs.jsonl --csv link.csv",
        "annotators pairs.jsonl --html pairs.jsonl",
        "annotators pairs.jsonl --next 2 --next-out pairs.jsonl --overwrite",
        "annotators judged/votes.jsonl --gold pairs.jsonl --csv pairs.jsonl",
        "rank battles.jsonl --csv battles.jsonl",
        "sample pairs.jsonl --url http://localhost:1/v1 --out pairs.parquet",
        "judge judged/votes.jsonl --judges judges.yaml --out judged",
        "genrm pairs.jsonl --judges judges.yaml --to prompts --out pairs.jsonl --overwrite",
        "genrm pairs.jsonl --judges judges.yaml --to prompts --out judges.yaml --overwrite",
        "score --rewards nowhere --data pairs.jsonl --out pairs.jsonl --overwrite",
        "evaluate nowhere pairs.jsonl --scores pairs.jsonl",
        "evaluate nowhere pairs.jsonl --generate alpaca_eval --out link.csv",
    ],
)
def test_what_is_read_is_never_replaced(command, files, capsys):
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert main(command.split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "is read too, and would be lost" in said.err
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("convert pairs.jsonl --to hf --out none/out.jsonl", "folder none does not exist"),
        ("convert pairs.jsonl --to hf --out judges.yaml/out.jsonl", "folder judges.yaml does not exist"),
        ("convert pairs.jsonl --to hf --out battles.jsonl", "battles.jsonl exists; name another file"),
        ("annotators pairs.jsonl --csv out --html ./out", "is to be written twice"),
        ("annotators pairs.jsonl --next 1 --next-out battles.jsonl", "battles.jsonl exists; name another file"),
        ("score --rewards nowhere --data pairs.jsonl --out out.txt", "out.txt: the name must end in"),
        ("validate pairs.jsonl --fix out.txt", "out.txt: the name must end in"),
        ("evaluate nowhere pairs.jsonl --generate samples --out out.txt", "out.txt: the name must end in"),
        ("rank battles.jsonl --by-prompt nowhere --out out.txt", "out.txt: the name must end in"),
        ("rank battles.jsonl --csv dir.csv", "dir.csv is a folder; name a file"),
        ("rank battles.jsonl --csv .", ". is a folder; name a file"),
        ("rank battles.jsonl --csv judged", "judged is a folder that is no saved Hugging Face data set"),
        (f"rank battles.jsonl --csv {'x' * 300}.csv", "cannot be written (File name too long)"),
        ("sample pairs.jsonl --url http://localhost:1/v1 --out .", ". is a folder; name a file"),
        ("sample pairs.jsonl --url http://localhost:1/v1 --out none/out.parquet", "folder none does not exist"),
        ("sample pairs.jsonl --url http://localhost:1/v1 --out out.jsonl", "the name must end in .parquet"),
        ("convert bare.jsonl --to hf --out out.jsonl", "no row is left to write to out.jsonl (pairs without a"),
        ("score --rewards nowhere --data pairs.jsonl --out none/out.jsonl", "folder none does not exist"),
        ("genrm pairs.jsonl --judges judges.yaml --to prompts --out battles.jsonl", "battles.jsonl exists"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_said_at_once(command, said, files, capsys):
    (files / "dir.csv").mkdir()
    before = sorted(files.rglob("*"))
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err and sorted(files.rglob("*")) == before


def test_what_is_printed_arrives_or_that_is_said(files, capsys, monkeypatch):
    ranked = ["rank", "battles.jsonl", "--bootstrap", "0"]
    with monkeypatch.context() as without:
        without.setattr(sys, "stdout", None)  # as Python has it where a program is started without one
        assert main(ranked) == 0
    full = Path("/dev/full").open("w")
    with monkeypatch.context() as onto:
        onto.setattr(sys, "stdout", full)
        assert main(ranked) == 2
    with contextlib.suppress(OSError):  # closing it fails too
        full.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "what was printed cannot be written (No space left on device)" in said
