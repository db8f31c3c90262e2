"""Each rank of ``test_logprob.py``: vocabulary-parallel log-probs and gradients of its slice against dense ones."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from nemo_rpo.megatron import cpu

cpu.install()

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.logprob import IGNORED, token_logprobs


@dataclass(frozen=True)
class Case:
    """n sequences of s positions over ``vocab`` tokens, padded to ``padded``; logits of the given spread and dtype."""

    n: int = 6
    s: int = 11
    vocab: int = 43
    padded: int = 48
    spread: float = 3.0
    dtype: torch.dtype = torch.float32


CASES = {
    "padded vocabulary": Case(),
    "no padding": Case(vocab=48),
    "a rank of padding alone": Case(vocab=20),
    "one sequence": Case(n=1),
    "extreme logits": Case(spread=3000.0),
    "bf16 logits": Case(dtype=torch.bfloat16),
    "no response token": Case(n=2, s=1),
}


def problem(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [n, s, padded], labels [n, s] and upstream gradients [n, s-1], the same on every rank."""
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(case.n, case.s, case.padded, generator=generator) * case.spread).to(case.dtype)
    # What the padding rows of the embedding happen to give must not matter.
    logits[..., case.vocab :] += 100 * case.spread
    labels = torch.randint(case.vocab, (case.n, case.s), generator=generator)
    labels[torch.rand(case.n, case.s, generator=generator) < 0.4] = IGNORED
    return logits, labels, torch.randn(case.n, case.s - 1, generator=generator)


def dense(case: Case, logits: torch.Tensor, labels: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probs and the gradient of the logits, by log_softmax over the real vocabulary in float64."""
    logits = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(logits[:, :-1, : case.vocab].double(), dim=-1)
    answered = labels[:, 1:] != IGNORED
    picked = logprobs.gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    picked = torch.where(answered, picked, 0.0)
    picked.backward(upstream.double())
    return picked.detach(), logits.grad


def compare(case: Case) -> dict[str, float]:
    """Largest differences, relative to the largest expected value, on this rank's slice."""
    logits, labels, upstream = problem(case)
    rank, size = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    mine = logits.chunk(size, dim=-1)[rank].clone().requires_grad_()
    found = token_logprobs(mine, labels, case.vocab)
    assert found.dtype == torch.float32
    found.backward(upstream)
    expected, gradient = dense(case, logits, labels, upstream)
    gradient = gradient.chunk(size, dim=-1)[rank]
    silent = torch.zeros_like(gradient, dtype=torch.bool)
    silent[..., max(case.vocab - rank * silent.shape[-1], 0) :] = True  # padding
    silent[:, :-1][labels[:, 1:] == IGNORED] = True
    silent[:, -1] = True
    return {
        "logprobs": distance(found, expected),
        "gradient": distance(mine.grad, gradient),
        "gradient where there is none": float(mine.grad[silent].abs().sum()),
        "change of the logits": float((mine.detach() - logits.chunk(size, dim=-1)[rank]).abs().sum()),
    }


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0))


def main() -> None:
    """``argv``: the folder to write ``TP.RANK.json`` to."""
    for tensor in (1, 2):
        cfg = RunConfig()
        cfg.trainer.accelerator, cfg.model.tensor_model_parallel_size = "cpu", tensor
        parallel.initialize(cfg)
        found = {name: compare(case) for name, case in CASES.items()}
        (Path(sys.argv[1]) / f"{tensor}.{dist.get_rank()}.json").write_text(json.dumps(found))
        parallel.finalize()


if __name__ == "__main__":
    main()
