"""``validate``, ``convert`` and ``rank`` as a person meets them: what they print, write, and end with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from nemo_rpo.cli import main


def pair(name: str, **more) -> dict:
    votes = [{"annotator": f"w{k}", "vote": "a"} for k in range(2)]
    return {"pair_id": name, "prompt": "q?\n", "response_a": "yes", "response_b": "no", "votes": votes, **more}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def good(tmp_path) -> Path:
    return write(tmp_path / "good.jsonl", [pair(f"p{i}") for i in range(15)])


@pytest.fixture
def battles(tmp_path) -> Path:
    rows = [{"model_a": "x", "model_b": "y", "winner": w, "annotator": f"j{i % 3}"} for i, w in enumerate("aabaaba")]
    return write(tmp_path / "battles.jsonl", rows)


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_a_good_file_passes(good, capsys):
    status, out, err = run(capsys, "validate", good)
    assert (status, err) == (0, "")
    assert f"{good}: layout votes" in out and out.endswith("0 errors, 0 warnings\n")


def test_errors_fail_and_warnings_fail_when_strict(tmp_path, capsys):
    warned = write(tmp_path / "warned.jsonl", [pair("p", response_a="caf\ufffd")])
    assert run(capsys, "validate", warned, "--min-labels", "0")[0] == 0
    assert run(capsys, "validate", warned, "--min-labels", "0", "--strict")[0] == 1
    status, out, _ = run(capsys, "validate", write(tmp_path / "bad.jsonl", [pair("p", response_a="")]))
    assert status == 1 and f"{tmp_path / 'bad.jsonl'}:1: the first completion is empty" in out


def test_json_is_the_whole_result(tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", [pair("p"), pair("e", response_a="")])
    status, out, _ = run(capsys, "validate", path, "--json", "--fix", tmp_path / "clean.jsonl")
    result = json.loads(out)
    assert status == 1 and result["rows"] == 2 and result["errors"] == 1 and result["agreement"]["not_unanimous"] == 0
    (finding,) = (finding for finding in result["findings"] if finding["kind"] == "empty_completion")
    assert finding["examples"] == [{"file": str(path), "row": 2, "problem": "the first completion is empty"}]
    assert result["fixed"] == {
        "out": str(tmp_path / "clean.jsonl"), "written": 1, "rows": {"empty_completion": 1}, "votes": {},
    }  # fmt: skip
    assert run(capsys, "validate", tmp_path / "clean.jsonl")[0] == 0


def test_fix_says_what_it_left_out(tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", [pair("p"), pair("e", response_a="")])
    _, out, _ = run(capsys, "validate", path, "--fix", tmp_path / "clean.jsonl")
    assert out.endswith(f"{tmp_path / 'clean.jsonl'}\n1 row written\n1 row left out: empty completion\n")


def test_convert_says_what_it_did(tmp_path, capsys):
    tie = {"votes": [{"annotator": "w1", "vote": "tie"}]}
    path = write(tmp_path / "rows.jsonl", [pair("p"), pair("t", **tie)])
    status, out, _ = run(capsys, "convert", path, "--to", "hf", "--out", tmp_path / "out.jsonl")
    assert status == 0
    assert out == (
        f"{tmp_path / 'out.jsonl'}: 2 rows, from 2 pairs in 2 rows\nleft out: ties (the layout names a winner): 1\n"
    )


def test_rank_prints_and_writes(battles, tmp_path, capsys):
    status, out, _ = run(capsys, "rank", battles, "--bootstrap", "20", "--csv", tmp_path / "board.csv")
    assert status == 0 and out.startswith("7 comparisons of 2 players\n")
    with (tmp_path / "board.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["player"], row["wins"]) for row in rows] == [("1", "x", "5"), ("2", "y", "2")]
    result = json.loads(run(capsys, "rank", battles, "--bootstrap", "0", "--crowd-bt", "--json")[1])
    assert [row["annotator"] for row in result["annotators"]] and result["players"][0]["player"] == "x"
    assert result["players"][0]["low"] is None


def test_a_file_that_comes_twice_is_named(battles, tmp_path, capsys, caplog):
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes(battles.read_bytes())
    shorter = write(tmp_path / "other.jsonl", [{"model_a": "x", "model_b": "z", "winner": "a", "annotator": "j"}])
    assert run(capsys, "rank", battles, shorter, "--bootstrap", "0")[0] == 0 and not caplog.messages
    run(capsys, "rank", battles, shorter, tmp_path / "." / battles.name, "--bootstrap", "0")
    assert caplog.messages[-1].startswith(f"{battles} is given twice")
    status, out, _ = run(capsys, "rank", battles, copied, "--bootstrap", "0", "--json")
    assert status == 0 and caplog.messages[-1].startswith(f"{copied} holds the same as {battles}")
    assert json.loads(out)["comparisons"] == 14


def test_names_keep_to_their_line(tmp_path, capsys):
    strange = ["a\nb", "c\td", "e\u2028f"]
    rows = [
        {"model_a": a, "model_b": b, "winner": a, "annotator": f"w\n{k}"}
        for k, (a, b) in enumerate(zip(strange, strange[1:] + strange[:1], strict=True))
    ]
    path = write(tmp_path / "battles.jsonl", rows)
    out = run(capsys, "rank", path, "--crowd-bt", "--audit", "--bootstrap", "9")[1]
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in ("a\\nb ", "c\\td ", "e\\u2028f "))
    assert "w\\n0" in out and "among a\\nb, c\\td, e\\u2028f" in out and "\t" not in out
    result = json.loads(run(capsys, "rank", path, "--bootstrap", "0", "--json")[1])
    assert sorted(player["player"] for player in result["players"]) == strange


def test_other_ratings_stand_beside(battles, capsys):
    pytest.importorskip("evalica", reason="compared with evalica: pip install 'nemo-rpo[rank]'")
    pytest.importorskip("trueskill", reason="TrueSkill needs trueskill: pip install 'nemo-rpo[rank]'")
    _, out, _ = run(capsys, "rank", battles, "--bootstrap", "0", "--elo", "--trueskill")
    assert out.splitlines()[2].split()[-2:] == ["elo", "trueskill"]


def damaged(tmp_path: Path) -> dict[str, Path]:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist([pair(f"p{i}") for i in range(50)]), tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-100])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc")
    (tmp_path / "folder").mkdir()
    return {name: tmp_path / name for name in (
        "missing.jsonl", "cut.parquet", "empty.jsonl", "blank.jsonl", "cut.jsonl.gz", "folder",
    )}  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ["validate", "--fix", "out.jsonl"],
        ["validate", "--json"],
        ["convert", "--to", "hf", "--out", "out.parquet"],
        ["rank", "--csv", "out.csv"],
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_read_is_one_line_and_status_2(command, tmp_path, capsys, monkeypatch):
    files = damaged(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name, path in files.items():
        status, out, err = run(capsys, command[0], path, *command[1:])
        assert (status, out) == (2, ""), name
        assert err.startswith("error: ") and err.count("\n") == 1 and str(path) in err, name
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "{good}", "--seq-length", "8"], "--tokenizer and --seq-length go together"),
        (
            ["validate", "{good}", "--tokenizer", "nowhere", "--seq-length", "8"],
            "tokenizer folder nowhere does not exist",
        ),
        (["validate", "{good}", "--fix", "{good}"], "good.jsonl is read too, and would be lost"),
        (["validate", "{good}", "--fix", "{battles}"], "exists; name another file, or say --overwrite"),
        (["validate", "{good}", "--fix", "out.txt"], "the name must end in .jsonl"),
        (["convert", "{good}", "--to", "hf", "--out", "nowhere/out.jsonl"], "folder nowhere does not exist"),
        (["convert", "{battles}", "--to", "hf", "--out", "out.jsonl"], "no known layout has these fields"),
        (["rank", "{good}"], "field 'model_a' is missing"),
        (["rank", "{battles}", "--prior", "-1"], "--prior must be 0 or more"),
        (["rank", "{battles}", "--csv", "nowhere/board.csv"], "folder nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, good, battles, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(capsys, *(argument.format(good=good, battles=battles) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["validate {good}", "convert {good} --to votes --out {out}", "rank {battles}"])
def test_neither_torch_nor_megatron_is_needed(command, good, battles, tmp_path):
    code = """
import sys
for name in ("torch", "megatron", "transformers", "pyarrow", "datasets", "omegaconf"):
    sys.modules[name] = None
from nemo_rpo.cli import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = command.format(good=good, battles=battles, out=tmp_path / "out.jsonl").split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_error(good):
    command = f"{sys.executable} -m nemo_rpo.cli validate {good} --json | head -c 1"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("{", "")
