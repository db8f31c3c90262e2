"""Every kind of loss through the real class on one rank: value, gradient and evidence against a plain implementation.

The plain one is transformers' Llama on whole responses, with this package's losses and posteriors: no NeMo, no
micro-batches, no padding. Of eight rows one is too long and one has the same response twice: six count.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from paths import ROOT
from transformers import AutoTokenizer, LlamaForCausalLM

from nemo_rpo.config.loss import pair_step
from nemo_rpo.em import AnnotatorReliability, Votes, robust_loss
from nemo_rpo.integrations.nemo_aligner import rpo_settings, training_labels
from nemo_rpo.integrations.nemo_aligner.aligner_settings import base_loss, dpo_settings
from nemo_rpo.losses import PairLogprobs
from nemo_rpo.losses.reduction import Mean
from nemo_rpo.megatron.step.metrics import StepMetrics

from . import shim, world

TOO_LONG, SAME = 2, 5
ETA = torch.tensor([0.9, 0.75, 0.6, 0.3, 0.8, 0.5], dtype=torch.float64)


def rows() -> list[dict[str, Any]]:
    made = world.rows(world.GLOBAL_BATCH, seed=11)
    made[TOO_LONG]["rejected_response"] = " ".join(["bad1"] * (world.LENGTH + 4))
    made[SAME]["rejected_response"] = made[SAME]["chosen_response"]
    for number, row in enumerate(made[:4]):  # the others have the recipe's default rewards
        row |= {"chosen_reward": 3.0 + number, "rejected_reward": 2.5}
    return made


@pytest.fixture(scope="module")
def stage(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The real model and trainer, one global batch of :func:`rows`, and both policies for transformers.

    The policy is not the reference: its weights are those of another seed.
    """
    from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf
    from nemo_rpo.megatron.checkpoint.huggingface.importer import load_hf_weights

    made = tmp_path_factory.mktemp("losses")
    world.write_model(made / "policy", seed=21)
    world.tiny_world.write_rows(made / "train.jsonl", rows())
    sys.path.insert(0, str(ROOT / "examples" / "nemo_aligner"))
    import train_gpt_rpo as example

    shim.complete_nemo()
    files = {name: [str(made / "train.jsonl")] for name in ("train", "validation", "test")}
    cfg = OmegaConf.create(world.recipe(folder, made / "log", {"model.data.data_prefix": files}))
    cfg.exp_manager = None
    cfg.model = example.load_and_override_model_config(cfg.pretrained_checkpoint.restore_from_path, cfg.model)
    trainer = example.script.resolve_and_create_trainer(cfg, "dpo")
    path = cfg.pretrained_checkpoint.restore_from_path
    model = example.load_from_nemo(example.MegatronGPTRPOModel, cfg.model, trainer, restore_path=path)
    rpo_trainer = example.build_rpo_trainer(cfg, trainer, model, labels=training_labels(cfg.model))
    load_hf_weights(model.get_model_module_list(), made / "policy", architecture_from_hf(made / "policy"))
    (batch,) = rpo_trainer.augment_dataloader(rpo_trainer.val_dataloader)
    policies = (made / "policy", folder / "model")
    return SimpleNamespace(
        cfg=cfg,
        model=model,
        trainer=rpo_trainer,
        batch=batch,
        policy=LlamaForCausalLM.from_pretrained(policies[0]),
        reference=LlamaForCausalLM.from_pretrained(policies[1]),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )


def settings(stage: SimpleNamespace, rpo: dict[str, Any], dpo: dict[str, Any]) -> Any:
    return OmegaConf.merge(stage.cfg.model, {"rpo": {"base_loss": "dpo", "estimator": "ema", **rpo}, "dpo": dpo})


def through_the_class(stage: SimpleNamespace, rpo: dict[str, Any], dpo: dict[str, Any]) -> SimpleNamespace:
    """One training pass under other settings of the loss; the EM starts at :data:`ETA`."""
    model, cfg = stage.model, settings(stage, rpo, dpo)
    model.base_loss, model.rpo = base_loss(cfg), rpo_settings(cfg)
    model.pair_step = pair_step(model.base_loss, dpo_settings(cfg), model.rpo)
    model.step_metrics = StepMetrics(model.base_loss.reduction, torch.device("cpu"))
    model.em = AnnotatorReliability(len(ETA), model.rpo)
    model.em.replace(ETA)
    stage.trainer.optimizer.zero_grad()
    model.prepare_for_training_step()
    loss, metrics = model.get_loss_and_metrics(dict(stage.batch), forward_only=False)
    model.finish_training_step()
    (chunk,) = model.get_model_module_list()
    parameters = dict(chunk.named_parameters())
    names = ("embedding.word_embeddings.weight", "decoder.final_layernorm.weight")
    grads = [parameters[name].grad.clone() for name in names]
    return SimpleNamespace(loss=loss, metrics=metrics, grads=grads, pending=model.em.pending.clone())


def plainly(stage: SimpleNamespace, rpo: dict[str, Any], dpo: dict[str, Any]) -> SimpleNamespace:
    cfg = settings(stage, rpo, dpo)
    loss, own, shared = base_loss(cfg), rpo_settings(cfg), dpo_settings(cfg)
    kept = [row for number, row in enumerate(rows()) if number not in (TOO_LONG, SAME)]
    x = _pair_logprobs(stage, kept)
    names = sorted({row["annotator"] for row in rows()})
    votes = Votes.single(torch.tensor([names.index(row["annotator"]) for row in kept]))
    em = AnnotatorReliability(len(ETA), own)
    em.replace(ETA)
    terms = loss.terms(x)
    w = em.posterior(terms.delta, votes) if own.enabled else votes.share()
    em.accumulate(w, votes, torch.tensor(own.enabled).expand(len(kept)))
    preference = robust_loss(terms, w, own.objective_in_force if own.enabled else "weighted")
    chosen, rejected = x.mean_policy() if shared.sft_average_log_probs else x.policy()
    each = shared.preference_loss_weight * preference - shared.sft_loss_weight * (w * chosen + (1 - w) * rejected)
    reduction = loss.reduction
    surrogate, statistic = reduction.surrogate(each).sum(), reduction.statistic(each).sum()
    stage.policy.zero_grad()
    (surrogate / statistic).backward()
    value = reduction.value(surrogate.detach(), statistic, torch.tensor(len(kept)))
    grads = [stage.policy.model.embed_tokens.weight.grad, stage.policy.model.norm.weight.grad]
    return SimpleNamespace(loss=value.item(), grads=grads, pending=em.pending, is_mean=isinstance(reduction, Mean))


def _pair_logprobs(stage: SimpleNamespace, kept: list[dict[str, Any]]) -> PairLogprobs:
    def summed(model: Any, side: str) -> torch.Tensor:
        return torch.stack([_logprob(stage.tokenizer, model, row, side)[0] for row in kept])

    def lengths(side: str) -> torch.Tensor:
        return torch.tensor([_logprob(stage.tokenizer, None, row, side)[1] for row in kept])

    with torch.no_grad():
        frozen = [summed(stage.reference, side) for side in ("chosen", "rejected")]
    gaps = [row.get("chosen_reward", 1.0) - row.get("rejected_reward", 0.0) for row in kept]
    return PairLogprobs(
        *(summed(stage.policy, side) for side in ("chosen", "rejected")),
        *frozen,
        *(lengths(side) for side in ("chosen", "rejected")),
        pair_columns={"margin": torch.tensor(gaps)},
    )


def _logprob(tokenizer: Any, model: Any, row: dict[str, Any], side: str) -> tuple[torch.Tensor | None, int]:
    prompt = tokenizer.encode(row["prompt"])
    ids = torch.tensor([[*tokenizer.encode(row["prompt"] + row[f"{side}_response"]), tokenizer.eos_token_id]])
    length = ids.shape[1] - len(prompt)
    if model is None:
        return None, length
    scores = model(ids).logits.float().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return scores[0, -length:].sum(), length


@pytest.mark.parametrize(
    ("rpo", "dpo"),
    [
        ({}, {}),
        ({}, {"sft_loss_weight": 0.1}),
        ({}, {"sft_loss_weight": 0.3, "sft_average_log_probs": True, "preference_loss_weight": 0.5}),
        ({}, {"preference_average_log_probs": True}),
        ({"base_loss": "ipo", "objective": "weighted"}, {"ref_policy_kl_penalty": 0.1}),
        ({"base_loss": "rpo_sq"}, {"gt_reward_scale": 0.5}),
        ({"base_loss": "rpo_bwd_kl"}, {}),
        ({"base_loss": "rpo_fwd_kl", "enabled": False}, {}),
        ({"base_loss": "mmpo"}, {}),
        ({"base_loss": "hinge"}, {}),
        ({"base_loss": "simpo", "loss_options": {"gamma_beta_ratio": 0.3}}, {"ref_policy_kl_penalty": 2.0}),
        ({"base_loss": "cpo"}, {}),
        ({"base_loss": "orpo", "link_tau": 2.0}, {}),
        ({"base_loss": "rdpo", "enabled": False, "loss_options": {"label_smoothing": 0.2}}, {}),
        ({"base_loss": "dr_dpo", "allow_noise_model": True}, {"sft_loss_weight": 0.1}),
        ({"warmup_steps": 3}, {}),
    ],
    ids=lambda given: ",".join(f"{name}={value}" for name, value in given.items()) or "dpo",
)
def test_loss_gradient_and_evidence(stage, rpo, dpo):
    found, expected = through_the_class(stage, rpo, dpo), plainly(stage, rpo, dpo)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
    for ours, theirs in zip(found.grads, expected.grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))
    torch.testing.assert_close(found.pending, expected.pending, rtol=0, atol=1e-5)
    assert expected.pending[1].sum() == (6 if rpo.get("enabled", True) else 0)


def test_dr_dpo_is_no_mean(stage):
    assert not plainly(stage, {"base_loss": "dr_dpo", "allow_noise_model": True}, {}).is_mean


def test_evaluation_learns_nothing(stage):
    model, cfg = stage.model, settings(stage, {}, {})
    through_the_class(stage, {}, {})
    model.em.rollback()
    model.prepare_for_validation_step()
    loss, _ = model.get_loss_and_metrics(dict(stage.batch), forward_only=True)
    model.finish_validation_step()
    # The labels at their word, which is the loss without the EM.
    assert loss == pytest.approx(plainly(stage, {"enabled": False}, {}).loss, rel=1e-5)
    assert not model.em.pending.any()
    assert torch.equal(model.em.eta, ETA)
    assert rpo_settings(cfg).enabled


def test_a_batch_without_a_pair_that_counts_moves_nothing(stage):
    nothing = dict(stage.batch) | {"valid": torch.zeros(world.GLOBAL_BATCH, dtype=torch.bool)}
    for rpo in ({}, {"base_loss": "dr_dpo", "allow_noise_model": True}):
        found = through_the_class(SimpleNamespace(**vars(stage) | {"batch": nothing}), rpo, {})
        assert not any(grad.any() for grad in found.grads)
        assert not found.pending.any()
