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
from nemo_rpo.megatron.logprobs.from_logits import token_logprobs


@dataclass(frozen=True)
class Case:
    """n tokens over ``vocab`` words, padded to ``padded``; logits of the given spread and dtype."""

    n: int = 60
    vocab: int = 43
    padded: int = 48
    spread: float = 3.0
    dtype: torch.dtype = torch.float32


CASES = {
    "padded vocabulary": Case(),
    "no padding": Case(vocab=48),
    "a rank of padding alone": Case(vocab=20),
    "one token": Case(n=1),
    "extreme logits": Case(spread=3000.0),
    "bf16 logits": Case(dtype=torch.bfloat16),
}


def problem(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [n, padded], targets [n] and upstream gradients [n], the same on every rank."""
    generator = torch.Generator().manual_seed(7)
    logits = (torch.randn(case.n, case.padded, generator=generator) * case.spread).to(case.dtype)
    # What the padding rows of the embedding happen to give must not matter.
    logits[..., case.vocab :] += 100 * case.spread
    targets = torch.randint(case.vocab, (case.n,), generator=generator)
    return logits, targets, torch.randn(case.n, generator=generator)


def dense(case: Case, logits: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probs and the gradient of the logits, by log_softmax over the real vocabulary in float64."""
    logits = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(logits[:, : case.vocab].double(), dim=-1)
    picked = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    picked.backward(upstream.double())
    return picked.detach(), logits.grad


def compare(case: Case) -> dict[str, float]:
    """Largest differences, relative to the largest expected value, on this rank's slice."""
    logits, targets, upstream = problem(case)
    rank, size = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    mine = logits.chunk(size, dim=-1)[rank].clone().requires_grad_()
    found = token_logprobs(mine, targets, case.vocab)
    assert found.dtype == torch.float32
    found.backward(upstream)
    expected, gradient = dense(case, logits, targets, upstream)
    gradient = gradient.chunk(size, dim=-1)[rank]
    silent = torch.zeros_like(gradient, dtype=torch.bool)
    silent[..., max(case.vocab - rank * silent.shape[-1], 0) :] = True  # padding
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
