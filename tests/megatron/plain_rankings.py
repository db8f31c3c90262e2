"""Rankings in one file of plain torch and transformers: what the engine has to reproduce, response by response and pair
by pair, written from the method alone.

Nothing of nemo_rpo is used. A ranking's pairs have a posterior w each; the ranking's loss, and its evidence for the
reliability of its annotator, are the means over its pairs. Without the EM a ranking's loss is that of its order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from plain_re_dpo import ALPHA, BATCH, BETA, BETAS, CLAMP, CLIP, EPS, ETA_INIT, SEED, WEIGHT_DECAY, learning_rate
from torch import Tensor

KAPPA, GAMMA = 0.05, 1.0  # the losses' own defaults


class Ranking(NamedTuple):
    """Ids of the prompt and of the responses, best first."""

    prompt: list[int]
    answers: list[list[int]]
    rewards: list[float]
    annotator: str


class Scored(NamedTuple):
    """A response under the policy and the reference: summed log-probs, tokens, reward."""

    policy: Tensor
    reference: Tensor
    tokens: int
    reward: float


class Pair(NamedTuple):
    """Δ of "the first is better", and what either response's anchor adds."""

    delta: Tensor
    anchors: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)


def plackett_luce(responses: list[Scored]) -> Tensor:
    scores = [BETA * (y.policy - y.reference) for y in responses]
    return sum(torch.stack(scores[t:]).logsumexp(0) - scores[t] for t in range(len(scores)))


def plackett_luce_pair(w: Scored, l: Scored) -> Pair:  # noqa: E741  (the method's letter)
    return Pair(BETA * ((w.policy - w.reference) - (l.policy - l.reference)))


def pro(responses: list[Scored]) -> Tensor:
    s, r = [y.policy / y.tokens for y in responses], [y.reward for y in responses]
    total = -KAPPA * (len(s) - 1) ** 2 * responses[0].policy
    for t in range(len(s) - 1):
        gaps = [r[t] - r[i] for i in range(t + 1, len(s))]
        choices = torch.stack([s[t] * max(gaps), *(s[t + 1 + i] * gap for i, gap in enumerate(gaps))])
        total = total + choices.logsumexp(0) - choices[0]
    return total


def pro_pair(w: Scored, l: Scored) -> Pair:  # noqa: E741
    delta = (w.reward - l.reward) * (w.policy / w.tokens - l.policy / l.tokens)
    return Pair(delta, (-KAPPA * w.policy, -KAPPA * l.policy))


def brain(responses: list[Scored]) -> Tensor:
    """The reference is the proposal."""
    target = torch.tensor([y.reward / GAMMA for y in responses]).softmax(0)
    return -(target * torch.stack([y.policy - y.reference for y in responses]).log_softmax(0)).sum()


def brain_pair(w: Scored, l: Scored) -> Pair:  # noqa: E741
    u = (w.policy - w.reference) - (l.policy - l.reference)
    q = torch.sigmoid(torch.tensor((w.reward - l.reward) / GAMMA))

    def loss(margin: Tensor) -> Tensor:
        return -q * F.logsigmoid(margin) - (1 - q) * F.logsigmoid(-margin)

    return Pair(loss(-u) - loss(u))


LOSSES: dict[str, tuple[Callable[[list[Scored]], Tensor], Callable[[Scored, Scored], Pair]]] = {
    "plackett_luce": (plackett_luce, plackett_luce_pair),
    "pro": (pro, pro_pair),
    "brain": (brain, brain_pair),
}


def read_rankings(path: Path, tokenizer: Path) -> list[Ranking]:
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]

    def ids(text: str) -> list[int]:
        return [vocabulary[word] for word in text.split()]

    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [
        Ranking(
            [vocabulary["<s>"], *ids(row["prompt"])],
            [[*ids(text), vocabulary["</s>"]] for text in row["responses"]],
            row["rewards"],
            row["annotator"],
        )
        for row in rows
    ]


def logprobs(model: torch.nn.Module, ranking: Ranking) -> list[Tensor]:
    """log π(y | x) of each response, every one in a forward pass of its own."""
    found = []
    for answer in ranking.answers:
        logits = model(torch.tensor([[*ranking.prompt, *answer]])).logits[0, len(ranking.prompt) - 1 : -1]
        found.append(torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)].sum())
    return found


def robust(responses: list[Scored], pair: Callable, logit_eta: float) -> tuple[Tensor, float]:
    """The mean loss over the pairs, and the mean of their posteriors."""
    losses, posteriors = [], []
    for better, worse in combinations(responses, 2):
        delta, anchors = pair(better, worse)
        w = torch.sigmoid(delta.detach() + logit_eta)
        loss = -w * F.logsigmoid(delta) - (1 - w) * F.logsigmoid(-delta)
        losses.append(loss + w * anchors[0] + (1 - w) * anchors[1])
        posteriors.append(w.item())
    return torch.stack(losses).mean(), sum(posteriors) / len(posteriors)


def trajectory(world: Path, loss: str, em: bool, steps: int, total_steps: int) -> list[dict[str, Any]]:
    """``{"loss", "grad_norm", "eta"}`` of the first ``steps`` steps."""
    from transformers import LlamaForCausalLM

    whole, pair = LOSSES[loss]
    rankings = read_rankings(world / "rankings.jsonl", world / "model" / "tokenizer.json")
    policy, reference = (LlamaForCausalLM.from_pretrained(world / "model").train() for _ in range(2))
    matrices = [p for p in policy.parameters() if p.dim() > 1]
    vectors = [p for p in policy.parameters() if p.dim() == 1]  # norms do not decay
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    eta = dict.fromkeys(sorted({ranking.annotator for ranking in rankings}), ETA_INIT)
    per_epoch = len(rankings) // BATCH
    found = []
    for step in range(1, steps + 1):
        epoch, position = divmod(step - 1, per_epoch)
        order = np.argsort(np.random.PCG64([SEED, epoch]).random_raw(len(rankings)), kind="stable")
        losses: list[Tensor] = []
        right: dict[str, list[float]] = {}
        for ranking in (rankings[i] for i in order[position * BATCH : (position + 1) * BATCH]):
            with torch.no_grad():
                frozen = logprobs(reference, ranking)
            tokens = map(len, ranking.answers)
            scored = map(Scored, logprobs(policy, ranking), frozen, tokens, ranking.rewards)
            if em:
                odds = eta[ranking.annotator] / (1 - eta[ranking.annotator])
                of_ranking, w = robust(list(scored), pair, math.log(odds))
                right.setdefault(ranking.annotator, []).append(w)
            else:
                of_ranking = whole(list(scored))
            losses.append(of_ranking)
        mean = torch.stack(losses).mean()
        optimizer.zero_grad()
        mean.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total_steps)
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        for k, of_k in right.items():
            eta[k] = min(max((1 - ALPHA) * eta[k] + ALPHA * sum(of_k) / len(of_k), CLAMP), 1 - CLAMP)
        found.append({"loss": mean.item(), "grad_norm": grad_norm.item(), "eta": list(eta.values())})
    return found
