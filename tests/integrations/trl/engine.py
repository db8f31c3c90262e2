"""The same training with this package's losses and EM on log-probs from a plain forward pass, no TRL."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import DPOConfig, ModelConfig
from nemo_rpo.em import Votes, bounded_loss, build_estimator, robust_loss
from nemo_rpo.integrations.rpo_block import rpo_config
from nemo_rpo.losses import PairLogprobs


def engine_run(
    folder: str, data: list[dict[str, Any]], batch: int, steps: int, rpo: dict[str, Any], lr: float = 0.005
) -> SimpleNamespace:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    settings = rpo_config(rpo, "rpo")
    loss = base_loss(ModelConfig(dpo=DPOConfig(ref_policy_kl_penalty=0.5), rpo=settings))
    names = sorted({row["annotator"] for row in data})
    labels = Votes.single(torch.tensor([names.index(row["annotator"]) for row in data]))
    em = build_estimator(settings, len(names), len(data), lambda block: Votes(labels.annotator, labels.sign))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses, per_epoch = [], -(-len(data) // batch)
    for step in range(steps):
        pairs = torch.arange(len(data))[step % per_epoch * batch :][:batch]
        rows = [data[i] for i in pairs]
        x = logprobs(rows, tokenizer, model)
        with torch.no_grad():
            frozen = logprobs(rows, tokenizer, reference)
        x = replace(x, reference_chosen=frozen.policy_chosen, reference_rejected=frozen.policy_rejected)
        votes = labels.of(pairs, torch.device("cpu"))
        terms = loss.terms(x)
        w = em.posterior(terms.delta.detach(), votes)
        if settings.objective_in_force == "bounded":
            value = bounded_loss(terms, *em.bounded(votes), w).mean()
        else:
            value = robust_loss(terms, w, settings.objective_in_force).mean()
        losses.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        everywhere = torch.ones(len(rows), dtype=torch.bool)
        em.accumulate(w, votes, everywhere)
        em.observe(pairs, terms.delta.detach(), everywhere)
        em.exchange(lambda of_the_only_process: of_the_only_process)
        em.commit()
    em.settle()
    return SimpleNamespace(losses=losses, em=em, model=model)


def logprobs(rows: list[dict[str, Any]], tokenizer: Any, model: Any) -> PairLogprobs:
    sides = [[_response(row["prompt"], row[side], tokenizer, model) for row in rows] for side in ("chosen", "rejected")]
    sums = [torch.stack([score for score, _ in side]) for side in sides]
    lengths = [torch.tensor([length for _, length in side]) for side in sides]
    return PairLogprobs(*sums, chosen_length=lengths[0], rejected_length=lengths[1])


def _response(prompt: str, response: str, tokenizer: Any, model: Any) -> tuple[torch.Tensor, int]:
    ids = torch.tensor([tokenizer(f"{prompt}{response}")["input_ids"] + [tokenizer.eos_token_id]])
    begin = len(tokenizer(prompt)["input_ids"])
    scores = model(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return scores[0, begin - 1 :].sum(), ids.shape[1] - begin
