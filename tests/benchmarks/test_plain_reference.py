"""The plain reference and the package are two readings of the same equations: they have to agree."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the plain reference needs the hf extra")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import plain_reference

from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.fit.sweep import full_batch_em
from nemo_rpo.em.votes import Votes
from nemo_rpo.world import AnnotatorConfig, WorldConfig, write_world
from nemo_rpo.world.pretraining import PretrainConfig

SETTINGS = plain_reference.Settings()


def test_the_posterior_is_equation_4():
    delta, eta = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.9, 0.2, 0.6])
    p = torch.sigmoid(delta)
    expected = p * eta / (p * eta + (1 - p) * (1 - eta))
    torch.testing.assert_close(plain_reference.posterior(delta, eta), expected)


def test_the_sweep_finds_what_the_packages_sweep_finds():
    torch.manual_seed(0)
    delta, annotator = torch.randn(4_000) * 2 + 0.5, torch.randint(5, (4_000,))
    start = torch.full((5,), 0.9)
    plain = plain_reference.sweep(delta, annotator, start, replace(SETTINGS, sweep_iterations=500))
    ours = full_batch_em(delta, Votes.single(annotator), start, EMSettings(prior=SETTINGS.prior))
    assert ours.converged
    torch.testing.assert_close(plain.double(), ours.eta, atol=1e-4, rtol=0)


def test_the_default_number_of_sweep_iterations_is_enough():
    torch.manual_seed(0)
    delta, annotator = torch.randn(12_000) * 2, torch.randint(12, (12_000,))
    start = torch.full((12,), 0.9)
    few, many = (
        plain_reference.sweep(delta, annotator, start, replace(SETTINGS, sweep_iterations=n))
        for n in (SETTINGS.sweep_iterations, 1_000)
    )
    torch.testing.assert_close(few, many, atol=1e-3, rtol=0)


def test_the_learning_rate_warms_up_and_decays():
    rates = [plain_reference.learning_rate(step, 100, SETTINGS) for step in range(100)]
    assert rates[0] == pytest.approx(SETTINGS.lr / 10) and max(rates) == pytest.approx(SETTINGS.lr)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01 * SETTINGS.lr


def test_a_small_run_learns_and_repeats(tmp_path):
    write_world(
        tmp_path,
        WorldConfig(
            validation_pairs=200,
            annotators=AnnotatorConfig((0.98, 0.9), labels=320),
            pretrain=PretrainConfig(steps=50, batch_size=32),
        ),
    )
    settings = replace(SETTINGS, batch_size=32)
    first, again = (plain_reference.train(tmp_path, "re_dpo", settings, seed=0) for _ in range(2))
    assert first == again
    assert first["accuracy"] > 0.75
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert len(plain_reference.errors(first["sweep"], truth)) == 2
    assert set(plain_reference.train(tmp_path, "dpo", settings, seed=0)) == {"accuracy"}
