"""``nemo-rpo convert --pairs-from-scores``: rules, what is dropped, and one-line errors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nemo_rpo.cli import main
from nemo_rpo.data.formats import read_rows
from nemo_rpo.judging.pairs_from_scores import convert_scores
from nemo_rpo.judging.rewards import all_good, good_enough, harmonic
from nemo_rpo.judging.score_rule import ScoreRule


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_of(tmp_path, rule: ScoreRule, *rows, to="hf"):
    out = tmp_path / "out.jsonl"
    done = convert_scores([write(tmp_path / "in.jsonl", *rows)], to, out, rule, overwrite=True)
    return [json.loads(line) for line in out.read_text().splitlines()], done


@pytest.mark.parametrize(
    ("high", "low", "kept"), [(0.9, 0.4, 1), (0.9, 0.6, 0), (0.7, 0.1, 0), (0.9, 0.0, 0), (0.8, 0.4, 1)]
)
def test_pass_rates_follow_acecoders_truth_table(tmp_path, high, low, kept):
    """Best ≥ .8, gap ≥ .4, worse above 0; a pair that is kept stands beside each case, so that a file comes out."""
    rows = [{"prompt": "p", "responses": ["w", "b"], "rewards": [low, high]}]
    rows += [{"prompt": "q", "responses": ["x", "y"], "rewards": [1.0, 0.5]}]
    found, done = pairs_of(tmp_path, ScoreRule("pass_rate"), *rows)
    assert len(found) == 1 + kept and done.lost["pairs that pass_rate does not tell apart"] == 1 - kept
    assert all(row["annotator"] == "pass_rate" for row in found)
    if kept:
        assert (found[0]["chosen"], found[0]["rejected"]) == ("b", "w")


def test_harmonic_mean_of_equal_scores_is_the_score(tmp_path):
    a = np.array([0.3, 0.7])
    np.testing.assert_allclose(harmonic(np.stack((a, a)), [0.2, 0.8]), a)
    row = {"prompt": "p", "responses": ["x", "y"], "scores": {"fit": [0.9, 0.5], "look": [0.1, 0.5]}}
    [found], _ = pairs_of(tmp_path, ScoreRule("harmonic", ["fit", "look"]), row)
    assert found["chosen"] == "y" and found["chosen_reward"] == pytest.approx(0.5)
    assert found["rejected_reward"] == pytest.approx(1 / (0.5 / 0.9 + 0.5 / 0.1))
    [found], _ = pairs_of(tmp_path, ScoreRule("harmonic", ["fit", "look"], weights=[1, 0]), row)  # λ = 1: the first
    assert found["chosen"] == "x" and found["chosen_reward"] == pytest.approx(0.9)


def test_log_sigmoid_of_the_prompts_own_quantile_and_the_sum(tmp_path):
    r = [0.7, -0.4]
    assert sum(-math.log1p(math.exp(-x)) for x in r) == pytest.approx(-1.3162013013)
    assert all_good(np.array(r)[:, None], [0.0, 0.0])[0] == pytest.approx(-1.3162013013)
    scores = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 4.0, 5.0, 1.0]])
    row = {"prompt": "p", "responses": list("abcd"), "s": scores[0].tolist(), "t": scores[1].tolist()}
    rule = ScoreRule("all_good", ["s", "t"], pick="extremes")
    [found], _ = pairs_of(tmp_path, rule, row)
    u = all_good(scores, [good_enough(part) for part in scores])
    assert found["chosen"] == "abcd"[u.argmax()] and found["chosen_reward"] == pytest.approx(u.max())
    moved = {**row, "s": (scores[0] + 7).tolist()}  # a constant added to all rewards of a prompt changes nothing
    [same], _ = pairs_of(tmp_path, rule, moved)
    assert same["chosen_reward"] == pytest.approx(found["chosen_reward"])
    _, done = pairs_of(tmp_path, ScoreRule("all_good", ["s", "t"]), row)
    assert done.pairs == 6


def test_what_is_dropped_is_counted_and_what_is_written_is_read(tmp_path, capsys):
    objects = [{"text": "x", "rewards": 1}, {"text": "y", "rewards": 2}]
    rows = [
        {"pair_id": "r1", "prompt": "p", "responses": ["a", "b", "c"], "rewards": [1, 2, None]},
        {"prompt": "p", "responses": ["a", "b"], "rewards": [1, None]},
        {"prompt": "q", "responses": ["same", "same", "z"], "rewards": [1, 2, 2]},
        {"prompt": "q", "responses": objects},
    ]
    path, out = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    asked = ["convert", str(path), "--to", "votes", "--out", str(out), "--pairs-from-scores", "difference"]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    for line in (
        "3 rows, from 3 pairs in 4 rows",
        "responses without a score: 2",
        "rows with fewer than two scored responses: 1",
        "pairs of responses that are the same: 1",
        "pairs that difference does not tell apart: 1",
    ):
        assert line in printed
    read = list(read_rows([out]))
    assert [row.votes[0].annotator for row in read] == ["difference"] * 3
    assert (read[0].pair_id, read[0].chosen, read[0].columns["chosen_reward"]) == ("r1:1:0", "b", 2.0)
    assert {row.chosen for row in read} == {"b", "z", "y"}


@pytest.mark.parametrize(
    ("options", "row", "message"),
    [
        (["--scores", "s"], {}, "score 's' must be a list of 2 values"),
        ([], {"rewards": [1, "x"]}, "score 'rewards' is 'x', no finite number"),
        ([], {"rewards": [1, 1]}, "no pair comes out of 1 rows"),
        ([], {"responses": "x"}, "a row needs prompt and responses"),
        ([], {"prompt": ""}, "a row needs a prompt"),
        (["--weights", "1"], {}, "--weights goes with"),
        (["--pairs-from-scores", "harmonic"], {}, "combines two scores or more"),
        (["--pairs-from-scores", "harmonic", "--scores", "rewards,s"], {"s": [0, 1]}, "rewards above 0"),
        (["--scores", "a,b"], {}, "goes by one score"),
        (["--gap", "2"], {}, "--gap must be from 0 to 1"),
    ],
)
def test_one_line_errors(tmp_path, capsys, options, row, message):
    path = write(tmp_path / "in.jsonl", {"prompt": "p", "responses": ["x", "y"], "rewards": [1, 2], **row})
    out = tmp_path / "out.jsonl"
    rule = [] if "--pairs-from-scores" in options else ["--pairs-from-scores", "difference"]
    assert main(["convert", str(path), "--to", "hf", "--out", str(out), *rule, *options]) != 0
    assert message in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(path), "--to", "hf", "--out", str(out), "--best", "0.5"]) == 2
    assert "--best goes with --pairs-from-scores" in capsys.readouterr().err
