"""The same training with this package's losses and EM alone: whole global batches in one process, no NeMo-RL."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import DPOConfig, ModelConfig
from nemo_rpo.em import Votes, bounded_loss, build_estimator, robust_loss
from nemo_rpo.integrations.rpo_block import rpo_config
from nemo_rpo.losses import PairLogprobs

from .driver import Recipe, tokenizer
from .workers import BigramModel


def engine_run(recipe: Recipe, lr: float = 0.5) -> SimpleNamespace:
    """Losses and η of the recipe, and the policy; over-long pairs left out, annotators in the order of their names."""
    dpo = DPOConfig(ref_policy_kl_penalty=0.5, **recipe.dpo)
    robust = rpo_config(recipe.robust, "robust")
    loss = base_loss(ModelConfig(dpo=dpo, rpo=robust))
    names = sorted({row["annotator"] for row in recipe.train})
    labels = Votes.single(torch.tensor([names.index(row["annotator"]) for row in recipe.train]))
    em = build_estimator(robust, len(names), len(recipe.train), lambda block: labels)
    model, reference = BigramModel(), BigramModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for step in range(recipe.max_steps):
        first = step * 8 % (len(recipe.train) // 8 * 8)
        pairs = [i for i in range(first, first + 8) if not _too_long(recipe.train[i], recipe.max_seq_length)]
        x = pair_logprobs([recipe.train[i] for i in pairs], model, reference)
        pair = torch.tensor(pairs)
        votes = labels.of(pair, pair.device)
        terms = loss.terms(x)
        w = em.posterior(terms.delta.detach(), votes) if em.settings.enabled else votes.share()
        objective = em.settings.objective_in_force if em.settings.enabled else "weighted"
        if objective == "bounded":
            preference = bounded_loss(terms, *em.bounded(votes), w)
        else:
            preference = robust_loss(terms, w, objective)
        sft = -(w * x.policy_chosen + (1 - w) * x.policy_rejected)
        each = dpo.preference_loss_weight * preference + dpo.sft_loss_weight * sft
        reduction = loss.reduction
        surrogate, statistic = reduction.surrogate(each), reduction.statistic(each)
        losses.append(reduction.value(surrogate.sum(), statistic.sum(), torch.tensor(len(pairs))).item())
        optimizer.zero_grad()
        (surrogate.sum() / statistic.sum()).backward()
        optimizer.step()
        if em.settings.enabled:
            everywhere = torch.ones(len(pairs), dtype=torch.bool)
            em.accumulate(w, votes, everywhere)
            em.observe(pair, terms.delta.detach(), everywhere)
            em.exchange(lambda of_the_only_process: of_the_only_process)
            em.commit()
    if em.settings.enabled:
        em.settle()
    return SimpleNamespace(losses=losses, em=em, model=model, reference=reference, loss=loss)


def pair_logprobs(rows: list[dict], model: BigramModel, reference: BigramModel) -> PairLogprobs:
    policy = [torch.stack([_response(row, side, model) for row in rows]) for side in ("chosen", "rejected")]
    frozen = [torch.stack([_response(row, side, reference) for row in rows]) for side in ("chosen", "rejected")]
    lengths = [torch.tensor([len(_tokens(row, side)[1]) for row in rows]) for side in ("chosen", "rejected")]
    return PairLogprobs(*policy, *(logps.detach() for logps in frozen), *lengths)


def _response(row: dict, side: str, model: BigramModel) -> torch.Tensor:
    prompt, response = _tokens(row, side)
    return model.next_token_logprobs(torch.cat((prompt, response))[None])[0, -len(response) :].sum()


def _tokens(row: dict, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    completions = sorted(row["completions"], key=lambda completion: completion["rank"])
    response = completions[side == "rejected"]["completion"][0]["content"]
    return tokenizer(row["context"][0]["content"]), tokenizer(response)


def _too_long(row: dict, max_seq_length: int) -> bool:
    return any(sum(map(len, _tokens(row, side))) > max_seq_length for side in ("chosen", "rejected"))
