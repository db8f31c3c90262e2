"""What labels reward: the linear Bradley-Terry model beside other libraries, its intervals, and the command."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil

import numpy as np
import pytest

import nemo_rpo.crowd.factors
from nemo_rpo.cli import main
from nemo_rpo.crowd.factors.answer_features import FEATURES, declared, features
from nemo_rpo.crowd.factors.driving import BELIEVED, DISTRUSTED, drivers_of
from nemo_rpo.crowd.factors.factor_settings import HeldOutSettings
from nemo_rpo.crowd.factors.held_out import foretell
from nemo_rpo.crowd.factors.linear_bt import covariance, fit_linear_bt, lda, sigmoid
from nemo_rpo.errors import DataError

from . import crowds

PLANTED = np.array([1.0, -0.5, 0.3, 0.0])


def drawn(seed: int, pairs: int, theta: np.ndarray = PLANTED) -> tuple[np.ndarray, np.ndarray]:
    """Differences [n, d] and wins [n]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(pairs, len(theta)))
    return x, (rng.random(pairs) < sigmoid(x @ theta)).astype(float)


@pytest.mark.parametrize(
    "module",
    [m.name for m in pkgutil.iter_modules(nemo_rpo.crowd.factors.__path__, "nemo_rpo.crowd.factors.")],
)
def test_doctests(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize(("pairs", "width"), [(300, 4), (600, 540)])  # Newton, and conjugate gradients
def test_equals_scikit_learns_logistic_regression(pairs, width):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="the cross-check needs scikit-learn")
    x, won = drawn(0, pairs, np.r_[PLANTED, np.zeros(width - 4)])
    weight = np.random.default_rng(1).uniform(0.5, 2, pairs)
    ours = fit_linear_bt(x, won, weight, ridge=2.0)
    theirs = linear_model.LogisticRegression(fit_intercept=False, C=0.5, tol=1e-12, solver="newton-cholesky")
    assert ours.converged
    np.testing.assert_allclose(ours.theta, theirs.fit(x, won, weight).coef_[0], atol=1e-6)


def test_closed_form_is_discriminant_analysis_of_pairs_and_their_mirror_images():
    discriminant = pytest.importorskip("sklearn.discriminant_analysis", reason="the cross-check needs scikit-learn")
    x, won = drawn(2, 300)
    theirs = discriminant.LinearDiscriminantAnalysis(solver="lsqr").fit(np.r_[x, -x], np.r_[won, 1 - won])
    np.testing.assert_allclose(lda(x, won), theirs.coef_[0], atol=1e-9)
    np.testing.assert_allclose(lda(x, 1 - won), -lda(x, won), atol=1e-12)


def test_one_hot_factors_are_the_plain_bradley_terry_model():
    """Factors unique to the winner beat factors unique to the loser: with one each, choix' strengths."""
    choix = pytest.importorskip("choix", reason="the cross-check needs choix")
    rng, players = np.random.default_rng(3), 6
    strengths, games = rng.normal(size=players), []
    for _ in range(300):
        i, j = rng.choice(players, 2, replace=False).tolist()
        games.append((i, j) if rng.random() < sigmoid(strengths[i] - strengths[j]) else (j, i))
    x = np.zeros((300, players))
    for row, (winner, loser) in enumerate(games):
        x[row, winner], x[row, loser] = 1, -1
    ours = fit_linear_bt(x, np.ones(300)).theta
    np.testing.assert_allclose(ours - ours.mean(), choix.ilsr_pairwise(players, games, tol=1e-12), atol=1e-6)


def test_turning_a_pair_round_changes_nothing():
    x, won = drawn(4, 200)
    sign = np.where(np.arange(200) % 3 == 0, -1.0, 1.0)
    turned = fit_linear_bt(x * sign[:, None], np.where(sign > 0, won, 1 - won), ridge=1.0)
    np.testing.assert_allclose(turned.theta, fit_linear_bt(x, won, ridge=1.0).theta, atol=1e-8)


def test_intervals_cover_planted_strengths():
    """Of 1,600 intervals 95 % ± 2; twice the same labels are no more evidence when a pair's labels go together."""
    inside = 0.0
    for seed in range(400):
        x, won = drawn(100 + seed, 300)
        theta = fit_linear_bt(x, won, ridge=1.0).theta
        error = np.sqrt(np.diag(covariance(x, theta, won, ridge=1.0)))
        inside += (np.abs(theta - PLANTED) <= 1.96 * error).mean() / 400
    assert 0.93 < inside < 0.97
    x, won = drawn(5, 2000)
    theta, pair = fit_linear_bt(x, won).theta, np.arange(2000)
    once = covariance(x, theta, won, groups=pair)
    twice = covariance(np.r_[x, x], theta, np.r_[won, won], groups=np.r_[pair, pair])
    np.testing.assert_allclose(twice, once, rtol=1e-6)
    np.testing.assert_allclose(np.diag(once), np.diag(covariance(x, theta, won)), rtol=0.15)


def test_a_property_that_decides_every_label_needs_a_ridge():
    x = np.random.default_rng(6).uniform(0.5, 1, (50, 1))
    with pytest.raises(DataError, match="ridge above 0"):
        fit_linear_bt(x, np.ones(50))
    assert np.isfinite(fit_linear_bt(x, np.ones(50), ridge=1.0).theta).all()


def test_no_label_has_a_say_in_its_own_margin():
    """Turning the labels of one group round leaves the log-odds of that group as they were, and moves others."""
    x, won = drawn(7, 400)
    groups = np.arange(400) % 20
    settings = HeldOutSettings(ridges=(1.0,))
    before = foretell(x, won, groups, settings=settings)
    mine = groups == 3
    after = foretell(x, np.where(mine, 1 - won, won), groups, settings=settings)
    np.testing.assert_array_equal(after.log_odds[mine], before.log_odds[mine])
    assert np.abs(after.log_odds - before.log_odds)[before.fold != before.fold[mine][0]].max() > 1e-3
    with pytest.raises(DataError, match="3 or more"):
        foretell(x, won, np.arange(400) % 2)


def test_features_and_declared_columns():
    answer = "# Plan\n- one [1]\n- two `x`\n"
    named = dict(zip(FEATURES, features("a plan", answer), strict=True))
    assert [round(np.expm1(named[n]), 9) for n in ("lists", "code", "headings", "citations")] == [2, 1, 1, 1]
    assert np.expm1(named["length"]) == pytest.approx(len(answer)) and 0 < named["overlap"] < 1
    row = {"response_a": "x", "response_b": "y", "grade_a": "3", "grade_b": 1}
    assert declared(row, "x", ["grade"], "f:1") == 2 and declared(row, "y", ["grade"], "f:1") == -2
    assert declared({"chosen_grade": 3, "rejected_grade": 1, "chosen": "x"}, "x", ["grade"], "f:1") == 2
    with pytest.raises(DataError, match="f:1: there is no column 'cost'"):
        declared(row, "x", ["cost"], "f:1")
    with pytest.raises(DataError, match="must be numbers"):
        declared(row | {"grade_b": "high"}, "x", ["grade"], "f:1")


def test_distrusted_labels_have_drivers_of_their_own():
    rng = np.random.default_rng(8)
    x, right = rng.normal(size=(4000, 2)), np.where(np.arange(4000) % 2, 0.9, 0.2)
    odds = np.where(right > 0.5, 1.5 * x[:, 0], 1.5 * x[:, 1])
    x *= np.where(rng.random(4000) < sigmoid(odds), 1.0, -1.0)[:, None]
    found = drivers_of(x, ["quality", "length"], right, np.arange(4000))
    believed, distrusted = found.of(BELIEVED), found.of(DISTRUSTED)
    assert believed["quality"].clear and not believed["length"].clear
    assert distrusted["length"].low < 1.5 < distrusted["length"].high and not distrusted["quality"].clear


def test_command_says_what_careless_annotators_reward(tmp_path, capsys):
    """Two of six say what is longer; others what is better. Both columns find it, and a declared column too."""
    rng, rows = np.random.default_rng(9), []
    for i in range(200):
        better, longer = rng.integers(2, size=2).tolist()
        texts = ["word " * (30 if side == longer else 10) for side in (0, 1)]
        says = [longer if k < 2 else better if rng.random() < 0.92 else 1 - better for k in range(6)]
        votes = [{"annotator": f"w{k}", "vote": "ab"[say]} for k, say in enumerate(says)]
        grades = {"grade_a": float(better == 0), "grade_b": float(better == 1)}
        answers = {"response_a": texts[0] + str(i), "response_b": texts[1] + str(i)}
        rows.append({"pair_id": str(i), "prompt": f"p{i}", **answers, "votes": votes, **grades})
    path, page = crowds.write(tmp_path / "v.jsonl", rows), tmp_path / "page.html"
    asked = ["annotators", str(path), "--factors", "--factor-columns", "grade"]
    assert main([*asked, "--json", "--html", str(page)]) == 0
    found = {(f["labels"], f["name"]): f for f in json.loads(capsys.readouterr().out)["drivers"]["factors"]}
    assert found["believed", "grade"]["low"] > 0 > found["distrusted", "grade"]["high"]
    assert found["distrusted", "length"]["low"] > 0.2
    assert "istrusted labels reward more length" in page.read_text() and "<svg" in page.read_text()
    assert main(["annotators", str(path), "--factor-columns", "grade"]) == 2
    assert "--factor-columns goes with --factors" in capsys.readouterr().err
