"""Confidence by "which are you surer of?": the area by hand, planted confidence, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nemo_rpo.cli import main
from nemo_rpo.ranking.selective import auc_interval, selective_auc


def test_the_area_of_four_questions_by_hand():
    """Surest first: right, right, wrong, right. Risk at 1, 2, 3, 4 answered: 0, 0, 1/3, 1/4."""
    score, correct = np.array([2.0, 4.0, 1.0, 3.0]), np.array([0, 1, 1, 1])
    assert selective_auc(score, correct) == pytest.approx(1 - (0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_equal_scores_count_as_the_mean_of_their_orders():
    rng = np.random.default_rng(0)
    score, correct = rng.integers(3, size=30).astype(float), (rng.random(30) < 0.6).astype(float)
    noise = [selective_auc(score + 1e-6 * rng.random(30), correct) for _ in range(4000)]
    assert selective_auc(score, correct) == pytest.approx(np.mean(noise), abs=4 * np.std(noise) / 4000**0.5)
    assert selective_auc(np.zeros(30), correct) == pytest.approx(correct.mean())


def test_intervals_are_paired_over_the_same_questions():
    rng = np.random.default_rng(1)
    score, correct = rng.random(50), (rng.random(50) < 0.5).astype(float)
    found = auc_interval({"a": score, "b": score}, correct, 50, 0.95, seed=0)
    assert found["a - b"] == (0.0, 0.0) and found["a"] == found["b"] and found["a"][0] < found["a"][1]


def planted(folder, seed, questions=80, each=15):
    """A model whose answers are right with chance σ(2c), who compares c with noise and states c coarsely."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=questions)
    correct = rng.random(questions) < 1 / (1 + np.exp(-2 * c))
    answers = [
        {"question": f"q{i}", "correct": bool(correct[i]), "confidence": float(c[i] + rng.normal() > 0)}
        for i in range(questions)
    ]
    said = []
    for a in np.repeat(np.arange(questions), each // 2 + 1):
        b = (a + rng.integers(1, questions)) % questions
        first = rng.random() < 1 / (1 + np.exp(2 * (c[b] - c[a])))
        said.append({"question_a": f"q{a}", "question_b": f"q{b}", "said": "a" if first else f"q{b}"})
    for name, rows in (("surer", said), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return selective_auc(c, correct.astype(float))


@pytest.mark.parametrize("seed", range(3))
def test_planted_confidence_comes_back_and_beats_a_coarse_statement(seed, tmp_path, capsys):
    best = planted(tmp_path, seed)
    arguments = ["rank", str(tmp_path / "surer.jsonl"), "--selective", str(tmp_path / "answers.jsonl")]
    assert main([*arguments, "--json", "--bootstrap", "50"]) == 0
    said = json.loads(capsys.readouterr().out)
    ours, stated = (said["scores"][name]["auc"] for name in ("bradley-terry", "confidence"))
    assert said["questions"] == 80 and said["accuracy"] < stated < ours
    assert ours == pytest.approx(best, abs=0.06)
    assert main(arguments) == 0 and "bradley-terry - confidence" in capsys.readouterr().out


def test_a_question_without_an_answer_is_named(tmp_path, capsys):
    planted(tmp_path, 0)
    (tmp_path / "answers.jsonl").write_text('{"question": "q0", "correct": true}\n')
    assert main(["rank", str(tmp_path / "surer.jsonl"), "--selective", str(tmp_path / "answers.jsonl")]) == 2
    assert "does not say whether the answer to 'q1' was right, nor to 78 others of the 80" in capsys.readouterr().err
