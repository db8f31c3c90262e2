"""Whole runs through NeMo-RL's loop, against the package's own losses and EM on the same rows.

Each test runs under the interface of v0.6.0, v0.7.0 and main, as nemo_rl/algorithms/dpo.py of each has it; the id of a
test names them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_rpo.errors import CheckpointError, DataError
from nemo_rpo.losses import build_loss, loss_names

from .driver import Recipe, rows, run
from .engine import engine_run, pair_logprobs
from .upstream import VERSIONS, Version

every_version = pytest.mark.parametrize("version", VERSIONS, ids=str)
MAIN = VERSIONS[-1]
LOG_PROBS_ALONE = [
    name
    for name in loss_names()
    if build_loss(name).needs <= {"policy", "reference", "lengths"} and not build_loss(name).unpaired
]


EMA = {"estimator": "ema"}
# The margins of a reference-free loss say something from the first step on.
BUFFER = {"estimator": "buffer", "base_loss": "cpo", "buffer": {"refit_every": 2, "min_gain": -1e9}}
either = pytest.mark.parametrize("robust", [EMA, BUFFER], ids=lambda robust: robust["estimator"])


def recipe(version: Version, folder: Path, pairs: int = 40, robust: dict = EMA, **settings) -> Recipe:
    return Recipe(version, folder, **{"train": rows(pairs), "max_steps": 6, "robust": {**EMA, **robust}, **settings})


@every_version
def test_losses_and_eta_are_the_packages_own(version, tmp_path):
    ours = recipe(version, tmp_path, robust={"alpha": 0.3})
    found, expected = run(ours), engine_run(ours)
    np.testing.assert_allclose([m["loss"] for m in found.logged], expected.losses, rtol=1e-5)
    torch.testing.assert_close(found.policy.em.eta, expected.em.eta, rtol=0, atol=1e-6)
    assert found.policy.annotators.ids == ["worker-0", "worker-1", "worker-2"]
    assert len(set(expected.em.eta.tolist())) == 3  # each annotator has learnt something of their own


@every_version
@pytest.mark.parametrize("margins", ["prequential", "latest"])
def test_the_margin_buffer_is_the_packages_own(version, margins, tmp_path):
    """Over-long pairs are never seen; two epochs, so that pairs come again."""
    robust = {**BUFFER, "buffer": {**BUFFER["buffer"], "margins": margins}}
    ours = recipe(version, tmp_path, pairs=32, robust=robust, max_steps=7, max_seq_length=11)
    found, expected = run(ours), engine_run(ours)
    found.policy.settle()
    assert expected.em.estimate.sweep is not None
    assert len(set(expected.em.eta.tolist())) == 3
    margins = found.policy.em.buffer.margins
    assert 0 < margins.isnan().sum() < 16
    torch.testing.assert_close(margins, expected.em.buffer.margins, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(found.policy.em.eta, expected.em.eta, rtol=0, atol=1e-4)
    np.testing.assert_allclose([m["loss"] for m in found.logged], expected.losses, rtol=1e-5)
    assert found.logged[-1]["em/information"] == pytest.approx(expected.em.estimate.information, abs=0.1)


@pytest.mark.parametrize("name", LOG_PROBS_ALONE)
def test_every_loss_of_log_probs(name, tmp_path):
    """main, nemo_rl/algorithms/loss/interfaces.py: only ``next_token_logprobs`` reach a loss."""
    robust = {"base_loss": name, "allow_noise_model": True, "warmup_steps": 1}
    ours = recipe(MAIN, tmp_path, robust=robust, max_steps=4)
    found, expected = run(ours), engine_run(ours)
    np.testing.assert_allclose([m["loss"] for m in found.logged], expected.losses, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(found.workers.model.table, expected.model.table, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.policy.em.eta, expected.em.eta, rtol=0, atol=1e-5)


@every_version
@pytest.mark.parametrize(
    "settings",
    [
        {"robust": {"objective": "weighted", "base_loss": "ipo"}},
        {"dpo": {"sft_loss_weight": 0.3}},
        {"robust": {"enabled": False}, "dpo": {"sft_loss_weight": 0.3, "preference_loss_weight": 0.5}},
        {"robust": {"alpha_per_labels": 2.0, "link_tau": 2.0, "eta_init": 0.7}},
    ],
    ids=["weighted", "sft", "plain", "settings"],
)
def test_settings(version, settings, tmp_path):
    ours = recipe(version, tmp_path, **settings)
    found, expected = run(ours), engine_run(ours)
    np.testing.assert_allclose([m["loss"] for m in found.logged], expected.losses, rtol=1e-5)
    torch.testing.assert_close(found.workers.model.table, expected.model.table, rtol=1e-4, atol=1e-6)
    if expected.em.settings.enabled:
        torch.testing.assert_close(found.policy.em.eta, expected.em.eta, rtol=0, atol=1e-6)
    else:
        assert not any(name.startswith("em/") for name in found.logged[0])


@pytest.mark.parametrize("dp_size", [1, 4])
@either
def test_eta_does_not_depend_on_the_layout(dp_size, robust, tmp_path):
    """main, nemo_rl/models/policy/lm_policy.py: shards are contiguous, metrics come back rank by rank."""
    two = run(recipe(MAIN, tmp_path / "two", robust=robust))
    other = run(recipe(MAIN, tmp_path / "other", robust=robust, dp_size=dp_size))
    torch.testing.assert_close(two.policy.em.eta, other.policy.em.eta, rtol=0, atol=1e-7)


@every_version
@either
def test_a_resumed_run_is_the_unbroken_one(version, robust, tmp_path):
    unbroken = run(recipe(version, tmp_path / "unbroken", robust=robust))
    run(recipe(version, tmp_path / "stopped", robust=robust, max_steps=2))
    resumed = run(recipe(version, tmp_path / "stopped", robust=robust))
    assert len(set(unbroken.policy.em.eta.tolist())) == 3
    assert [m["loss"] for m in resumed.logged] == [m["loss"] for m in unbroken.logged][2:]
    assert torch.equal(resumed.policy.em.eta, unbroken.policy.em.eta)
    assert resumed.policy.em.step == unbroken.policy.em.step == 6
    assert torch.equal(resumed.policy.em.label_counts, unbroken.policy.em.label_counts)
    if robust is BUFFER:
        margins = [of.policy.em.buffer.margins for of in (resumed, unbroken)]
        assert torch.equal(*margins)
        assert margins[0].isfinite().all()  # five of the six batches are all 40 pairs


@every_version
def test_margins_of_other_pairs_are_refused(version, tmp_path):
    run(recipe(version, tmp_path, robust=BUFFER, max_steps=2))
    data = rows(40)
    turned = recipe(version, tmp_path, robust=BUFFER, train=[data[1], data[0], *data[2:]])
    with pytest.raises(CheckpointError, match=r"margins are of other pairs.*dpo\.robust\.estimator=ema") as caught:
        run(turned)
    assert "\n" not in str(caught.value)


@every_version
def test_newcomers_join_a_resumed_run_only_when_allowed(version, tmp_path):
    run(recipe(version, tmp_path, max_steps=2))
    more = recipe(version, tmp_path, train=rows(40, annotators=4))
    with pytest.raises(DataError, match=r"worker-3.*dpo\.robust\.allow_new_annotators"):
        run(more)
    joined = run(replace(more, robust={**EMA, "allow_new_annotators": True}))
    assert joined.policy.annotators.ids[3] == "worker-3"


@every_version
def test_a_checkpoint_without_reliabilities_is_refused(version, tmp_path):
    run(recipe(version, tmp_path, robust={"enabled": False}, max_steps=2))
    with pytest.raises(CheckpointError, match=r"rpo_state\.json is missing"):
        run(recipe(version, tmp_path))


@every_version
def test_validation_fills_up_the_last_batch_and_teaches_nothing(version, tmp_path):
    """nemo_rl/algorithms/utils.py, ``maybe_pad_last_batch``: our keys are not among those that it fills up."""
    validation = rows(11, seed=7)
    with_it = run(recipe(version, tmp_path / "a", validation=validation, max_steps=2))
    without = run(recipe(version, tmp_path / "b", max_steps=2))
    assert torch.equal(with_it.policy.em.eta, without.policy.em.eta)
    assert [m["num_valid_samples"] for m in with_it.validated] == [8, 3]

    policy = with_it.workers
    x = pair_logprobs(validation[8:], policy.model, policy.reference)
    # The labels at their word: weighed by its own w, a policy that denies them would look good to itself.
    expected = -torch.nn.functional.logsigmoid(with_it.loss_fn.base.terms(x).delta).mean().item()
    assert with_it.validated[-1]["loss"] == pytest.approx(expected, rel=1e-5)


@every_version
def test_strangers_in_validation_are_believed_as_all_were_at_the_start(version, tmp_path):
    validation = rows(8, seed=7, annotator="somebody else") + rows(8, seed=8, annotator=None)
    found = run(recipe(version, tmp_path, validation=validation, robust={"eta_init": 0.8}, max_steps=2))
    seen = found.workers.seen[-1]["pair_evidence"]
    torch.testing.assert_close(seen, torch.full_like(seen, 0.8).logit())


@every_version
@pytest.mark.parametrize("keeps_masked", [False, True], ids=["DTensor", "Megatron"])
def test_masked_micro_batches(version, keeps_masked, tmp_path):
    """workers/dtensor_policy_worker.py drops the metrics of a micro-batch with no valid row; Megatron's keeps them."""
    ours = recipe(version, tmp_path, max_seq_length=11, workers={"keeps_masked": keeps_masked})
    found, expected = run(ours), engine_run(ours)
    assert any(m["num_valid_samples"] < 8 for m in found.logged)
    np.testing.assert_allclose([m["loss"] for m in found.logged], expected.losses, rtol=1e-5)
    torch.testing.assert_close(found.policy.em.eta, expected.em.eta, rtol=0, atol=1e-6)
    assert torch.equal(found.policy.em.label_counts, expected.em.label_counts)


@every_version
@either
def test_workers_that_answer_twice_count_once(version, robust, tmp_path):
    once = run(recipe(version, tmp_path / "once", robust=robust))
    twice = run(recipe(version, tmp_path / "twice", robust=robust, workers={"answers": 2}))
    assert torch.equal(once.policy.em.eta, twice.policy.em.eta)
    assert torch.equal(once.policy.em.label_counts, twice.policy.em.label_counts)


@every_version
def test_every_metric_is_one_number(version, tmp_path):
    """nemo_rl/algorithms/dpo.py: ``np.sum(v).item()`` over whatever is there; a vector would become its sum."""
    logged = run(recipe(version, tmp_path, max_steps=2)).logged[0]
    assert {"em/eta_mean", "em/eta_min", "em/posterior_mean", "em/frac_flipped", "em/abs_delta_mean"} <= logged.keys()
    assert not {"em_pair", "em_posterior", "em_delta", "em_statistic"} & logged.keys()
    assert logged["em/posterior_mean"] == pytest.approx(0.9)
    assert logged["loss"] == pytest.approx(np.log(2))
    assert logged["num_valid_samples"] == 8
