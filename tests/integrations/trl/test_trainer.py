"""RPOTrainer on the real TRL: the loss and the reliabilities are the package's own, whatever runs around them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torchrun import run_ranks
from transformers import AutoTokenizer
from trl import DPOTrainer

from nemo_rpo.em import Votes, full_batch_em
from nemo_rpo.errors import CheckpointError, DataError
from nemo_rpo.integrations.trl.data import take_labels

from .engine import engine_run
from .world import InOrder, arguments, logged, rows, trainer

RANKS = Path(__file__).with_name("ranks_trl.py")


@pytest.mark.parametrize(
    "rpo",
    [
        {"alpha": 0.3},
        {"base_loss": "ipo", "objective": "weighted"},
        {"base_loss": "ipo_avg"},
        {"base_loss": "simpo", "warmup_steps": 2},
        {"base_loss": "cpo"},
        {"base_loss": "orpo", "link_tau": 2.0},
        {"base_loss": "rdpo", "allow_noise_model": True, "loss_options": {"label_smoothing": 0.2}},
    ],
    ids=lambda rpo: rpo.get("base_loss", "dpo"),
)
def test_losses_and_eta_are_the_packages_own(rpo, model, tmp_path):
    data, rpo = rows(18), {"estimator": "ema", **rpo}
    run = trainer(model, arguments(tmp_path, learning_rate=1e-3), data, rpo)
    run.train()
    expected = engine_run(model, data, batch=4, steps=5, rpo=rpo, lr=1e-3)
    np.testing.assert_allclose(logged(run, "loss"), expected.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.em.eta, expected.em.eta, rtol=0, atol=1e-5)
    assert torch.equal(run.em.label_counts, expected.em.label_counts)


@pytest.mark.parametrize("margins", ["prequential", "latest"])
def test_the_margin_buffer_is_the_packages_own(margins, model, tmp_path):
    """Refits after every second step and at the end; the margins of a reference-free loss differ from 0 at once."""
    data, rpo = rows(18), {"base_loss": "cpo", "buffer": {"refit_every": 2, "margins": margins, "min_gain": -1e9}}
    run = trainer(model, arguments(tmp_path, max_steps=7), data, rpo)
    run.train()
    expected = engine_run(model, data, batch=4, steps=7, rpo=rpo)
    assert expected.em.estimate.sweep is not None
    assert len(set(expected.em.eta.tolist())) == 3
    np.testing.assert_allclose(logged(run, "loss"), expected.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.em.buffer.margins, expected.em.buffer.margins, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.em.eta, expected.em.eta, rtol=0, atol=1e-4)
    assert run.em.label_counts.sum() == 18


def test_the_first_step_has_margin_0_and_believes_the_start(model, tmp_path):
    run = trainer(model, arguments(tmp_path, max_steps=1), rows(8), {"eta_init": 0.8})
    run.train()
    assert logged(run, "em/abs_delta_mean") == [0.0]
    assert logged(run, "em/posterior_mean") == [pytest.approx(0.8)]
    assert logged(run, "rewards/margins") == [0.0]


def test_micro_batches_and_a_short_last_one_change_nothing(model, tmp_path):
    data = rows(22)
    ema = {"estimator": "ema"}
    one = trainer(model, arguments(tmp_path, per_device_train_batch_size=8, max_steps=6), data, ema)
    several = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=6)
    many = trainer(model, several, data, ema)
    one.train(), many.train()
    np.testing.assert_allclose(logged(one, "loss"), logged(many, "loss"), rtol=1e-5)
    torch.testing.assert_close(one.em.eta, many.em.eta, rtol=0, atol=1e-6)
    assert one.em.step == many.em.step == 6
    assert many.em.label_counts.sum() == 2 * 22


def test_without_the_em_it_is_trls_own_dpo(model, tmp_path):
    data = rows(16)
    ours = trainer(model, arguments(tmp_path), data, {"enabled": False})

    class Stock(DPOTrainer):
        _get_train_sampler = InOrder._get_train_sampler

    stock = Stock(
        model,
        args=arguments(tmp_path),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    ours.train(), stock.train()
    np.testing.assert_allclose(logged(ours, "loss"), logged(stock, "loss"), rtol=1e-5)
    for name in ("rewards/margins", "logps/chosen", "entropy", "mean_token_accuracy", "num_tokens"):
        np.testing.assert_allclose(logged(ours, name), logged(stock, name), rtol=1e-5)
    assert not logged(ours, "em/eta_mean")


BUFFER = {"estimator": "buffer", "base_loss": "cpo", "buffer": {"refit_every": 2, "min_gain": -1e9}}


@pytest.mark.parametrize("rpo", [{"estimator": "ema"}, BUFFER], ids=lambda rpo: rpo["estimator"])
def test_a_resumed_run_is_the_unbroken_one(rpo, model, tmp_path):
    data, steps = rows(18), {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch"}
    unbroken = trainer(model, arguments(tmp_path / "a", **steps), data, rpo)
    unbroken.train()
    stopped = trainer(model, arguments(tmp_path / "b", **{**steps, "max_steps": 3}), data, rpo)
    stopped.train()
    resumed = trainer(model, arguments(tmp_path / "b", **steps), data, rpo)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "loss") == logged(unbroken, "loss")
    assert torch.equal(resumed.em.eta, unbroken.em.eta)
    assert torch.equal(resumed.em.right_sums, unbroken.em.right_sums)
    assert resumed.em.step == 6
    assert len(set(unbroken.em.eta.tolist())) == 3
    if rpo is BUFFER:
        assert torch.equal(resumed.em.buffer.margins, unbroken.em.buffer.margins)
        saved = np.load(tmp_path / "b" / "checkpoint-3" / "rpo_margins.npy")
        assert np.isfinite(saved).sum() == 12  # three batches of four
    state = json.loads((tmp_path / "b" / "checkpoint-6" / "rpo_state.json").read_text())
    assert [row["eta"] for row in state["annotators"]] == unbroken.em.eta.tolist()


def test_training_pairs_are_believed_by_what_is_known_of_their_votes(model, tmp_path):
    """All follow the order shown; the evidence is looked up by the pair's index, saved, and taken up bit for bit."""
    data = [{**row, "shown_first": "chosen" if i % 10 else "rejected"} for i, row in enumerate(rows(160))]
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    rpo = {"buffer": {"refit_every": 2}, "label_model": {"features": ["slot"]}}
    unbroken = trainer(model, arguments(tmp_path / "a", **steps), data, rpo)
    asked, evidence = [], unbroken.em.evidence

    def looked_up(votes, pair=None, *more):
        asked.append((pair, found := evidence(votes, pair, *more)))
        return found

    unbroken.em.evidence = looked_up
    unbroken.train()
    em = unbroken.em
    assert em.label_model.now.names == ("skill", "slot") and (em.coefficients["slot"][0] > 0.5).all()
    pair, found = asked[-1]
    assert pair.unique().tolist() == sorted(pair.tolist()) and em.pair_evidence[pair].shape == found.shape
    against = torch.tensor([row["shown_first"] == "rejected" for row in data])
    assert em.pair_evidence[against].mean() > em.pair_evidence[~against].mean() + 0.5
    assert (tmp_path / "a" / "checkpoint-2" / "rpo_label_model.npz").exists()

    stopped = trainer(model, arguments(tmp_path / "b", **{**steps, "max_steps": 2}), data, rpo)
    stopped.train()
    resumed = trainer(model, arguments(tmp_path / "b", **steps), data, rpo)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "loss") == logged(unbroken, "loss")
    assert torch.equal(resumed.em.pair_evidence, em.pair_evidence) and torch.equal(resumed.em.eta, em.eta)


def test_margins_of_other_pairs_are_refused(model, tmp_path):
    steps, data = {"save_strategy": "steps", "save_steps": 2}, rows(18)
    trainer(model, arguments(tmp_path, max_steps=2, **steps), data, BUFFER).train()
    turned = [data[1], data[0], *data[2:]]
    with pytest.raises(CheckpointError, match=r"margins are of other pairs.*rpo\.estimator=ema") as caught:
        trainer(model, arguments(tmp_path, max_steps=4, **steps), turned, BUFFER).train(resume_from_checkpoint=True)
    assert "\n" not in str(caught.value)
    margins = tmp_path / "checkpoint-2" / "rpo_margins.npy"
    margins.write_bytes(margins.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"rpo_margins\.npy is damaged"):
        trainer(model, arguments(tmp_path, max_steps=4, **steps), data, BUFFER).train(resume_from_checkpoint=True)


def test_newcomers_join_a_resumed_run_only_when_allowed(model, tmp_path):
    steps, ema = {"save_strategy": "steps", "save_steps": 2}, {"estimator": "ema"}
    trainer(model, arguments(tmp_path, max_steps=2, **steps), rows(18), ema).train()
    more = [{**row, "annotator": "0 new"} if i == 9 else row for i, row in enumerate(rows(18))]
    with pytest.raises(DataError, match=r"annotator '0 new'.*rpo\.allow_new_annotators"):
        trainer(model, arguments(tmp_path, max_steps=4, **steps), more, ema).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"no margins of pairs.*set rpo\.estimator=ema"):
        trainer(model, arguments(tmp_path, max_steps=4, **steps), rows(18)).train(resume_from_checkpoint=True)
    joined = trainer(model, arguments(tmp_path, max_steps=4, **steps), more, {"allow_new_annotators": True, **ema})
    joined.train(resume_from_checkpoint=True)
    assert joined.annotators.ids == ["a0", "a1", "a2", "0 new"]
    assert joined.em.label_counts.tolist() == [5, 5, 5, 1]


def test_a_checkpoint_without_reliabilities_is_refused(model, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer(model, arguments(tmp_path, **steps), rows(8), {"enabled": False}).train()
    with pytest.raises(CheckpointError, match=r"rpo_state\.json is missing"):
        trainer(model, arguments(tmp_path, **steps), rows(8)).train(resume_from_checkpoint=True)


def test_evaluation_moves_nothing(model, tmp_path):
    data = rows(16)
    evaluation = Dataset.from_list(
        [{**row, "annotator": None if i % 2 else "x"} for i, row in enumerate(rows(7, seed=3))]
    )
    rpo = {"buffer": {"refit_every": 2, "margins": "latest", "min_information": 0.0, "min_gain": -1e9}}
    quiet = trainer(model, arguments(tmp_path, max_steps=3), data, rpo)
    often = arguments(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    watched = trainer(model, often, data, rpo, eval_dataset=evaluation)
    quiet.train(), watched.train()
    assert torch.equal(quiet.em.eta, watched.em.eta)
    assert torch.equal(quiet.em.label_counts, watched.em.label_counts)
    assert quiet.em.label_counts.sum() > 0
    assert len(logged(watched, "eval_loss")) == 4
    assert logged(watched, "eval_loss")[0] == pytest.approx(np.log(2), rel=1e-5)


def test_cached_reference_log_probs_give_the_same_run(model, tmp_path):
    live = trainer(model, arguments(tmp_path), rows(16))
    cached = trainer(model, arguments(tmp_path, precompute_ref_log_probs=True), rows(16))
    live.train(), cached.train()
    np.testing.assert_allclose(logged(live, "loss"), logged(cached, "loss"), rtol=1e-5)
    torch.testing.assert_close(live.em.eta, cached.em.eta, rtol=0, atol=1e-6)


def test_pairs_without_evidence_count_nowhere(model, tmp_path):
    data = rows(8)
    data[1]["chosen"] = data[1]["rejected"]
    for row in data:
        row["annotator_sign"] = 1
    data[6]["annotator_sign"] = 0
    run = trainer(model, arguments(tmp_path, max_steps=2), data, {"estimator": "ema"})
    buffered = trainer(model, arguments(tmp_path, max_steps=2), data)
    run.train(), buffered.train()
    assert buffered.em.buffer.margins.isnan().nonzero().flatten().tolist() == [1, 6]
    others = [row for i, row in enumerate(data) if i not in (1, 6)]
    assert run.em.label_counts.sum() == 6
    expected = engine_run(model, others[:3], batch=3, steps=1, rpo={})
    assert logged(run, "loss")[0] == pytest.approx(expected.losses[0], rel=1e-5)


@pytest.mark.parametrize("estimator", ["ema", "buffer"])
def test_a_skipped_optimizer_step_teaches_nothing(estimator, model, tmp_path, monkeypatch):
    run = trainer(model, arguments(tmp_path), rows(20), {"estimator": estimator})
    skipped = property(lambda self: run.state.global_step in (1, 2))
    monkeypatch.setattr(type(run.accelerator), "optimizer_step_was_skipped", skipped)
    run.train()
    assert run.em.step == 3
    labels = run.em.label_counts.sum() if estimator == "ema" else run.em.buffer.margins.isfinite().sum()
    assert labels == 12


def test_several_votes_of_a_pair_share_one_posterior(model, tmp_path):
    data = [{**row, "annotator": ["a", "b", "c"], "annotator_sign": [1, 1, -1]} for row in rows(8)]
    run = trainer(model, arguments(tmp_path, max_steps=1), data, {"eta_init": 0.8, "estimator": "ema"})
    run.train()
    assert logged(run, "em/posterior_mean") == [pytest.approx(0.8)]  # two of the three cancel out at margin 0
    right = torch.tensor([0.8, 0.8, 0.2], dtype=torch.float64)
    torch.testing.assert_close(run.em.eta, torch.lerp(torch.full_like(right, 0.8), right, 0.1), rtol=0, atol=1e-6)


def test_a_sweep_is_the_full_batch_em_on_all_margins(model, tmp_path):
    data = rows(22)
    rpo = {"sweep": "end", "estimator": "ema"}
    run = trainer(model, arguments(tmp_path, max_steps=6, per_device_eval_batch_size=3), data, rpo)
    run.train()
    deltas = []
    with torch.no_grad():
        for batch in run.get_test_dataloader(run.train_dataset):
            inputs, _ = take_labels(batch)
            deltas.append(run.loss.terms(run.pair_logprobs(run.model.eval(), inputs)).delta)
    votes = Votes.single(torch.tensor([run.annotators.index(row["annotator"]) for row in data]))
    expected = full_batch_em(torch.cat(deltas), votes, torch.full((3,), 0.9), run.em.settings)
    torch.testing.assert_close(run.em.eta, expected.eta, rtol=0, atol=1e-4)
    assert logged(run, "em/converged") == [1.0]
    running, swept = logged(run, "em/eta_min")[-2:]
    assert running != swept == run.em.eta.min()


@pytest.mark.distributed
def test_two_processes_learn_the_eta_of_one(model, tmp_path):
    """22 rows in batches of 3: accelerate fills up the last batches of an epoch with rows that have been there."""
    found = []
    for processes, accumulation in ((1, 2), (2, 1)):
        out = tmp_path / f"{processes}.json"
        env = {"ACCELERATE_USE_CPU": "true"}
        run_ranks(RANKS, processes, model, out, 3, accumulation, env=env, forked=processes == 1)
        found.append(json.loads(out.read_text()))
    for estimator, labels in (("ema", 44), ("buffer", 22)):
        one, two = (of_processes[estimator] for of_processes in found)
        assert two["label_counts"] == one["label_counts"]
        assert sum(one["label_counts"]) == labels
        np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
        np.testing.assert_allclose(two["eta_min"], one["eta_min"], atol=1e-5)
        np.testing.assert_allclose(two["eta"], one["eta"], atol=1e-5)
    one, two = (of_processes["buffer"]["margins"] for of_processes in found)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert len(two) == 22 and np.isfinite(two).all()
