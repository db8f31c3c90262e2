"""Crowd-BT: reliabilities come back, adversaries are used, and both steps raise the same likelihood."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from public_sets import pandalm_battles

from nemo_rpo.em import EMSettings, Votes, full_batch_em, posterior
from nemo_rpo.errors import DataError
from nemo_rpo.ranking import Comparisons, RankSettings, Schedule, bradley_terry, fit

from . import games

ETA = [0.97, 0.95, 0.92, 0.9, 0.85, 0.8, 0.7, 0.6, 0.3, 0.1]
CROWD = RankSettings(crowd_bt=True)


def test_reliabilities_and_strengths_come_back():
    comparisons, strength = games.drawn(0, players=15, games=12_000, eta=ETA)
    found = fit(comparisons, CROWD)
    error = found.reliabilities.eta - np.array(ETA)
    assert np.abs(error).max() < 0.08
    assert np.abs(error / found.reliabilities.standard_error).max() < 3
    s = found.strengths.log_strength
    assert np.corrcoef(s, strength)[0, 1] > 0.98
    blind = fit(comparisons, RankSettings()).strengths.log_strength
    # Whoever takes adversaries at their word sees strengths shrunk to half. (Their common scale is the least certain.)
    assert np.polyfit(strength, blind, 1)[0] < 0.6 < 0.85 < np.polyfit(strength, s, 1)[0] < 1.25


def test_labels_are_counted_without_ties():
    comparisons, _ = games.drawn(1, players=5, games=800, ties=0.3, eta=[0.9, 0.8])
    labels = fit(comparisons, CROWD).reliabilities.labels
    assert labels.sum() == (comparisons.outcome != 0).sum()


def test_judges_without_names_cannot_be_told_apart():
    comparisons = replace(games.drawn(1, players=5, games=100)[0], annotators=["all"])
    with pytest.raises(DataError, match="no row says who judged"):
        fit(comparisons, CROWD)


def marginal_posterior(comparisons, s, eta, em: EMSettings, prior: float) -> torch.Tensor:
    """log Σ_z P(labels, z | s, η) with the priors of both, in torch and by the formula of the docstring."""
    won, lost = torch.tensor(comparisons.first), torch.tensor(comparisons.second)
    swap = torch.tensor(comparisons.outcome < 0)
    won, lost = torch.where(swap, lost, won), torch.where(swap, won, lost)
    p = torch.sigmoid(s[won] - s[lost])
    k = torch.tensor(comparisons.annotator)
    likelihood = (eta[k] * p + (1 - eta[k]) * (1 - p)).log().sum()
    a, b = em.prior
    of_eta = (a * eta.log() + b * (1 - eta).log()).sum()
    of_s = prior * (torch.nn.functional.logsigmoid(s) + torch.nn.functional.logsigmoid(-s)).sum()
    return likelihood + of_eta + of_s


def test_the_fixed_point_is_a_mode_of_the_marginal_posterior():
    comparisons, _ = games.drawn(2, players=8, games=3000, eta=[0.95, 0.8, 0.4])
    found = fit(comparisons, RankSettings(crowd_bt=True, crowd_tolerance=1e-10))
    s = torch.tensor(found.strengths.log_strength, requires_grad=True)
    eta = torch.tensor(found.reliabilities.eta, requires_grad=True)
    marginal_posterior(comparisons, s, eta, EMSettings(), RankSettings.prior).backward()
    assert s.grad.abs().max() < 1e-3
    # The EM stops when no η moves by 1e-6; the curvature is of the order of the labels.
    assert eta.grad.abs().max() < 0.05


@pytest.mark.parametrize("ties", ["davidson", "half", "drop"])
def test_annotators_of_one_kind_change_no_order(ties):
    comparisons, _ = games.drawn(3, players=6, games=3000, ties=0.2, eta=[0.9])
    crowd = fit(comparisons, RankSettings(crowd_bt=True, ties=ties)).strengths.log_strength
    blind = fit(comparisons, RankSettings(ties=ties)).strengths.log_strength
    assert (np.argsort(crowd) == np.argsort(blind)).all()


def test_humans_and_judges_of_pandalm(shared_data):
    rows = list(pandalm_battles(shared_data / "pandalm_testset"))
    names, ids = (
        sorted({row["model_a"] for row in rows} | {row["model_b"] for row in rows}),
        sorted({row["annotator"] for row in rows}),
    )
    comparisons = Comparisons(
        names,
        np.array([names.index(row["model_a"]) for row in rows]),
        np.array([names.index(row["model_b"]) for row in rows]),
        np.array([{"a": 1, "b": -1, "tie": 0}[row["winner"]] for row in rows], dtype=np.int8),
        ids,
        np.array([ids.index(row["annotator"]) for row in rows]),
    )
    found = fit(comparisons, CROWD)
    assert len(names) == 5 and found.reliabilities.labels.sum() == 4970 - 471
    assert found.strengths.converged and (found.reliabilities.eta > 0.5).all()
    blind = fit(comparisons, RankSettings()).strengths.log_strength
    assert (np.argsort(found.strengths.log_strength) == np.argsort(blind)).all()


def alternated(comparisons, settings: RankSettings) -> tuple[np.ndarray, np.ndarray]:
    """Strengths to convergence, then reliabilities to convergence, and so on: slow, and nothing to get wrong."""
    em = replace(EMSettings(), sweep_tolerance=1e-13, sweep_max_iterations=100_000)
    signed = comparisons.outcome != 0
    won = np.where(comparisons.outcome > 0, comparisons.first, comparisons.second)
    lost = np.where(comparisons.outcome > 0, comparisons.second, comparisons.first)
    votes = Votes.single(torch.from_numpy(comparisons.annotator[signed]))
    schedule = Schedule(comparisons.first, comparisons.second, len(comparisons.players))
    eta, found = torch.full((len(comparisons.annotators),), em.eta_init, dtype=torch.float64), None
    margin, half = np.zeros(int(signed.sum())), 0.5 * (~signed if settings.ties == "half" else np.zeros(len(signed)))
    for _ in range(2000):
        right = posterior(torch.from_numpy(margin), votes, eta.logit()).numpy()
        wins = np.zeros((2, len(signed)))
        first_won = comparisons.outcome[signed] > 0
        wins[0, signed], wins[1, signed] = np.where(first_won, (right, 1 - right), (1 - right, right))
        tied = (~signed & (settings.ties == "davidson")).astype(float)
        found = bradley_terry(schedule, schedule.results(wins[0] + half, wins[1] + half, tied), settings, found)
        before, margin = margin, (found.log_strength[won] - found.log_strength[lost])[signed]
        eta = full_batch_em(torch.from_numpy(margin), votes, eta, em).eta
        if np.abs(margin - before).max() < 1e-11:
            return found.log_strength, eta.numpy()
    raise AssertionError("the reference has not converged")


@pytest.mark.parametrize("ties", ["davidson", "half"])
@pytest.mark.parametrize("most", [0, 10_000], ids=["by steps of the EM", "by Fisher scoring"])
def test_whichever_way_the_top_is_reached_it_is_the_same(most, ties):
    comparisons, _ = games.drawn(6, players=12, games=2500, ties=0.15, eta=[0.95, 0.85, 0.7, 0.3])
    settings = RankSettings(crowd_bt=True, ties=ties, refit_parameters=most)
    found = fit(comparisons, settings)
    s, eta = alternated(comparisons, replace(settings, tolerance=1e-13))
    assert found.strengths.converged
    np.testing.assert_allclose(found.strengths.log_strength, s, atol=1e-6)
    np.testing.assert_allclose(found.reliabilities.eta, eta, atol=1e-6)
