"""RE-DPO in one file of plain torch and transformers: what the engine has to reproduce, written from the method alone.

Nothing of nemo_rpo is used. Notation of the paper: h the difference of the log-ratios, Δ = βh, w the posterior that the
majority's answer is the better one, η_k the reliability of annotator k.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BETA, ALPHA, ETA_INIT, CLAMP = 0.5, 0.1, 0.9, 1e-4
BATCH, EPOCHS, SEED = 16, 2, 5
LR, MIN_LR, WARMUP, BETAS, EPS, WEIGHT_DECAY, CLIP = 2e-3, 2e-4, 4, (0.9, 0.98), 1e-8, 0.1, 1.0

Pair = tuple[list[int], list[int], list[int], list[tuple[str, int]]]  # prompt, chosen, rejected, (annotator, ±1)


def read_pairs(world: Path, file: str = "train.jsonl") -> list[Pair]:
    vocabulary = json.loads((world / "model" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]

    def ids(text: str) -> list[int]:
        return [vocabulary[word] for word in text.split()]

    pairs = []
    for line in (world / file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        votes = [(vote["annotator"], {"a": 1, "b": -1}[vote["vote"]]) for vote in row["votes"] if vote["vote"] != "tie"]
        answers = [[*ids(row[f"response_{side}"]), vocabulary["</s>"]] for side in "ab"]
        if sum(sign for _, sign in votes) < 0:  # chosen is what the majority prefers; of equal ones, the first
            answers.reverse()
            votes = [(annotator, -sign) for annotator, sign in votes]
        pairs.append(([vocabulary["<s>"], *ids(row["prompt"])], *answers, votes))
    return pairs


def logprobs(model: torch.nn.Module, batch: list[Pair]) -> tuple[Tensor, Tensor]:
    """log π(chosen | prompt) and log π(rejected | prompt), [pairs] each, from one right-padded and masked batch."""
    sequences = [(prompt, answers[side]) for side in (0, 1) for prompt, *answers, _ in batch]
    width = max(len(prompt) + len(answer) for prompt, answer in sequences)
    tokens, real, scored = (torch.zeros(len(sequences), width, dtype=torch.long) for _ in range(3))
    for i, (prompt, answer) in enumerate(sequences):
        tokens[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        real[i, : len(prompt) + len(answer)] = 1
        scored[i, len(prompt) : len(prompt) + len(answer)] = 1
    logits = model(tokens, attention_mask=real).logits[:, :-1]
    found = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (found * scored[:, 1:]).sum(-1).chunk(2)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up to ``LR``, then half a cosine to ``MIN_LR`` after the last step; ``step`` counts from 1."""
    if step <= WARMUP:
        return LR * step / WARMUP
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps + 1 - WARMUP)))


def trajectory(world: Path) -> list[dict[str, Any]]:
    """``{"loss", "grad_norm", "eta"}`` of every step."""
    from transformers import LlamaForCausalLM

    pairs = read_pairs(world)
    policy, reference = (LlamaForCausalLM.from_pretrained(world / "model").train() for _ in range(2))
    matrices = [p for p in policy.parameters() if p.dim() > 1]
    vectors = [p for p in policy.parameters() if p.dim() == 1]  # norms do not decay
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    eta = dict.fromkeys(sorted({name for *_, votes in pairs for name, _ in votes}), ETA_INIT)
    per_epoch = len(pairs) // BATCH
    steps = []
    for step in range(1, EPOCHS * per_epoch + 1):
        epoch, position = divmod(step - 1, per_epoch)
        order = np.argsort(np.random.PCG64([SEED, epoch]).random_raw(len(pairs)), kind="stable")
        batch = [pairs[i] for i in order[position * BATCH : (position + 1) * BATCH]]
        with torch.no_grad():
            reference_chosen, reference_rejected = logprobs(reference, batch)
        chosen, rejected = logprobs(policy, batch)
        delta = BETA * ((chosen - reference_chosen) - (rejected - reference_rejected))
        evidence = [sum(sign * math.log(eta[k] / (1 - eta[k])) for k, sign in votes) for *_, votes in batch]
        w = torch.sigmoid(delta.detach() + torch.tensor(evidence))
        loss = (-w * F.logsigmoid(delta) - (1 - w) * F.logsigmoid(-delta)).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, EPOCHS * per_epoch)
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        right: dict[str, list[float]] = {}
        for (*_, votes), probability in zip(batch, w.tolist(), strict=True):
            for k, sign in votes:
                right.setdefault(k, []).append(probability if sign > 0 else 1 - probability)
        for k, found in right.items():
            eta[k] = min(max((1 - ALPHA) * eta[k] + ALPHA * sum(found) / len(found), CLAMP), 1 - CLAMP)
        steps.append({"loss": loss.item(), "grad_norm": grad_norm.item(), "eta": list(eta.values())})
    return steps
