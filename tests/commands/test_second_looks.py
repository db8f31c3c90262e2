"""``rank --over-time``, ``--robust``, ``--audit`` and ``--interval`` as a person meets them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from nemo_rpo.cli import main

pytest.importorskip("scipy", reason="second looks need scipy: pip install 'nemo-rpo[rank]'")


@pytest.fixture
def battles(tmp_path) -> Path:
    """Four players; x gets worse in twelve weeks."""
    rng, names, rows = np.random.default_rng(0), "wxyz", []
    for k in range(1500):
        a, b = rng.choice(4, 2, replace=False)
        strength = {"w": 0.5, "x": 1 - 3 * k / 1500, "y": 0.0, "z": -0.5}
        won = rng.random() < 1 / (1 + np.exp(strength[names[b]] - strength[names[a]]))
        time = str(np.datetime64("2026-01-05") + np.timedelta64(k * 84 // 1500, "D"))
        rows.append({"model_a": names[a], "model_b": names[b], "winner": "ba"[int(won)], "time": time})
    path = tmp_path / "battles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main(["rank", *(str(argument) for argument in arguments)])
    return status, *capsys.readouterr()


def is_svg(path: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith("<svg")


def test_who_has_got_worse(battles, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'nemo-rpo[report]'")
    plot, table = tmp_path / "over.svg", tmp_path / "over.csv"
    status, out, _ = run(capsys, battles, "--over-time", "--slice", "7d", "--plot", plot, "--csv", table)
    assert status == 0 and "in 12 slices of time, 2026-01-05" in out and "log Bayes factor +" in out
    [row] = [line.split() for line in out.splitlines() if line.startswith("x ")]
    assert "worse" in row and is_svg(plot)
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == 48
    found = json.loads(run(capsys, battles, "--over-time", "--walk", "0", "--json")[1])
    assert found["slices"] == 1 and [player["change"] for player in found["players"]] == [0] * 4


def test_second_looks_stand_below_the_leaderboard(battles, tmp_path, capsys):
    features = tmp_path / "features.csv"
    features.write_text("player,size\nw,3\nx,2\ny,1\nz,0\n")
    plain = ["--bootstrap", "0"]
    asked = ["--robust", "--audit", "--features", features, "--interval", "0.2", "--judge-next", tmp_path / "next.csv"]
    status, out, _ = run(capsys, battles, *plain, *asked)
    assert status == 0 and out.startswith("1,500 comparisons of 4 players")
    for words in ("second opinion: 0 of 6 pairs contradicted", "audit of 6 pairs", "leximax Copeland", "plan: "):
        assert words in out
    with (tmp_path / "next.csv").open() as file:
        planned = sum(int(row["judgements"]) for row in csv.DictReader(file))
    found = json.loads(run(capsys, battles, *plain, *asked, "--json")[1])
    assert found["plan"]["judgements"] == planned > 0
    assert found["audit"]["linear"]["features"] == ["size"] and found["second_opinion"]["entries"] == 6


@pytest.mark.parametrize("asked", [["--robust"], ["--audit"], ["--interval", "0.4"]])
def test_pictures(battles, tmp_path, capsys, asked):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'nemo-rpo[report]'")
    assert run(capsys, battles, "--bootstrap", "0", *asked, "--plot", tmp_path / "out.svg")[0] == 0
    assert is_svg(tmp_path / "out.svg")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--plot", "out.svg"], "--plot draws one of"),
        (["--robust", "--audit", "--plot", "out.svg"], "--plot draws one of"),
        (["--robust", "--plot", "out.png"], "--plot writes SVG"),
        (["--slice", "7d"], "--slice goes with --over-time"),
        (["--features", "f.csv"], "--features goes with --audit"),
        (["--judge-next", "n.csv"], "--judge-next goes with --interval"),
        (["--over-time", "--robust"], "--over-time stands alone"),
        (["--over-time", "--time-key", "when"], "field 'when' is missing"),
        (["--over-time", "--crowd-bt"], "nemo-rpo annotators"),
        (["--interval", "9", "--judge-next", "n.csv"], "there is nothing left to judge"),
    ],
)
def test_what_does_not_go_together_is_one_line(battles, capsys, asked, message):
    status, _, err = run(capsys, battles, "--bootstrap", "0", *asked)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--costs", "costs.csv"], "--costs goes with --by-prompt RUN"),
        (["--budget", "1"], "--budget goes with --by-prompt RUN"),
        (["--out", "routes.csv"], "--out goes with --by-prompt RUN"),
        (["--absolute", "sure"], "--absolute goes with --selective ANSWERS"),
        (["--seed", "-1"], "--seed must be 0 or more, not -1"),
    ],
)
def test_an_option_without_its_way_is_not_passed_over(battles, capsys, asked, message):
    status, out, err = run(capsys, battles, *asked)
    assert status != 0 and not out and err.splitlines() == [f"error: {message}"]


@pytest.mark.parametrize("asked", [["--csv"], ["--interval", "0.2", "--judge-next"]])
def test_what_is_read_is_never_replaced(battles, tmp_path, capsys, asked):
    """Under another name too."""
    before, link = battles.read_bytes(), tmp_path / "link.csv"
    link.symlink_to(battles)
    for out in (battles, link):
        status, _, err = run(capsys, battles, "--bootstrap", "0", *asked, out)
        assert status != 0 and err == f"error: {out} is read too, and would be lost; name another file to write\n"
    assert battles.read_bytes() == before


def test_features_said_twice_must_agree(battles, tmp_path, capsys):
    features = tmp_path / "features.csv"
    features.write_text("player,size\nw,3\nx,2\ny,1\nz,0\nz,5\n")
    status, _, err = run(capsys, battles, "--bootstrap", "0", "--audit", "--features", features)
    assert status != 0 and err == f"error: {features}:6: 'z' has other numbers in an earlier row\n"


def test_names_from_a_file_do_not_change_the_terminal(tmp_path, capsys):
    path = tmp_path / "battles.jsonl"
    row = {"model_a": "red\x1b[31m", "model_b": "turned\u202e", "winner": "model_a"}
    path.write_text((json.dumps(row) + "\n") * 3)
    status, out, err = run(capsys, path, "--bootstrap", 5)
    assert status == 0 and "\\x1b[31m" in out and "\\u202e" in out
    assert not {"\x1b", "\u202e"} & set(out + err)
