"""What the votes of a file show together: position, dependence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_rpo.validation import validate
from nemo_rpo.validation.text_report import as_text


def write(path: Path, votes: np.ndarray, truth: np.ndarray, shown: np.ndarray | None = None) -> Path:
    """Votes [n, K], True for response a, of everybody on everything."""
    rows = []
    for i, said in enumerate(votes):
        cast = [{"annotator": f"w{k}", "vote": "a" if a else "b"} for k, a in enumerate(said)]
        if shown is not None:
            cast = [vote | {"shown_first": "a" if shown[i] else "b"} for vote in cast]
        rows.append({"prompt": f"p{i}", "response_a": f"x {i}", "response_b": f"y {i}", "votes": cast})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def crowd(seed: int, pairs: int, annotators: int, right: float = 0.8):
    rng = np.random.default_rng(seed)
    truth = rng.random(pairs) < 0.5
    return rng, truth, np.where(rng.random((pairs, annotators)) < right, truth[:, None], ~truth[:, None])


@pytest.mark.parametrize("recorded", [True, False])
def test_votes_for_the_first_response_are_noticed(recorded, tmp_path):
    rng, truth, votes = crowd(0, 400, 1)
    shown = rng.random(400) < 0.5 if recorded else np.ones(400, dtype=bool)
    votes = np.where(rng.random((400, 1)) < 0.6, shown[:, None], votes)
    report = validate(write(tmp_path / "v.jsonl", votes, truth, shown if recorded else None)).report
    order = report.together.order
    assert (
        order.follows
        and order.shown is recorded
        and order.pairs == 400
        and order.first / 400 == pytest.approx(0.8, abs=0.05)
    )
    assert report.findings.counts["votes_follow_order"] == 1
    assert "votes that follow the order of the responses" in as_text(report)
    assert json.loads(json.dumps(report.to_dict()))["together"]["order"]["follows"] is True


def test_honest_votes_rarely_seem_to_follow_the_order(tmp_path):
    follows = 0
    for seed in range(60):
        rng, truth, votes = crowd(seed, 100, 1)
        shown = rng.random(100) < 0.5
        follows += validate(write(tmp_path / "v.jsonl", votes, truth, shown)).report.together.order.follows
    assert follows <= 1  # at p < .001


def test_a_layout_that_names_the_winner_has_no_order(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": f"x {i}", "rejected": f"y {i}"} for i in range(200)]
    path = tmp_path / "won.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert validate(path).report.together.order is None


def test_shared_errors_are_warned_of(tmp_path):
    rng, truth, votes = crowd(3, 150, 8, right=0.75)
    common = np.where(rng.random((150, 1)) < 0.7, truth[:, None], ~truth[:, None])  # right or wrong for all of them
    votes[:, :4] = np.where(rng.random((150, 4)) < 0.8, common, votes[:, :4])
    report = validate(write(tmp_path / "v.jsonl", votes, truth)).report
    assert {w["kind"] for w in report.together.warnings} & {"shared_errors", "dependent_errors", "upside_down"}
    assert report.findings.counts["crowd"] == len(report.together.warnings)
    assert report.together.dependence["spread"] > 1.2 * report.together.dependence["expected_spread"]
    _, truth, apart = crowd(5, 150, 8)
    honest = validate(write(tmp_path / "h.jsonl", apart, truth)).report
    assert honest.together.warnings == []


def test_without_torch_it_says_what_is_left_out(tmp_path, monkeypatch):
    _, truth, votes = crowd(0, 40, 3)
    monkeypatch.setitem(sys.modules, "nemo_rpo.crowd.crowd_fit", None)
    report = validate(write(tmp_path / "v.jsonl", votes, truth)).report
    assert "label model" in report.together.left_out and "not looked at" in as_text(report)
