"""Each rank of ``test_linear_logprob.py``: log-probs by blocks of the vocabulary, alone and in the output layer, and
their gradients, against dense ones in float64.
"""

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
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from ranks_logprob import distance

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.batch.responses import IGNORED, ResponseTokens
from nemo_rpo.megatron.logprobs.chunked import linear_logprobs
from nemo_rpo.megatron.network.gpt import ScoringHead


@dataclass(frozen=True)
class Case:
    """``rows`` sequences of ``s`` positions under a head of ``padded`` rows, ``vocab`` of them real, h of 16."""

    rows: int = 6
    s: int = 12
    vocab: int = 43
    padded: int = 48
    spread: float = 1.0
    dtype: torch.dtype = torch.float32
    block_elements: int | None = 200  # a few words at a time
    answered: float = 0.6


CASES = {
    "padded vocabulary": Case(),
    "no padding": Case(vocab=48),
    "a rank of padding alone": Case(vocab=20),
    "one block": Case(block_elements=None),
    "a word at a time": Case(block_elements=1),
    "one sequence": Case(rows=1),
    "extreme logits": Case(spread=1000.0),
    "bf16": Case(dtype=torch.bfloat16),
    "no response token": Case(answered=0.0),
}


@dataclass(frozen=True)
class Problem:
    """The same on every rank: hidden states [s, rows, h], head [padded, h], what is scored, upstream gradients [n]."""

    hidden: torch.Tensor
    weight: torch.Tensor
    responses: ResponseTokens
    upstream: torch.Tensor

    @classmethod
    def of(cls, case: Case) -> Problem:
        generator = torch.Generator().manual_seed(7)
        hidden = torch.randn(case.s, case.rows, 16, generator=generator) * case.spread
        weight = torch.randn(case.padded, 16, generator=generator)
        weight[case.vocab :] *= 100  # what the padding rows happen to give must not matter
        labels = torch.randint(case.vocab, (case.rows, case.s), generator=generator)
        labels[torch.rand(case.rows, case.s, generator=generator) >= case.answered] = IGNORED
        responses = ResponseTokens.of_labels(labels)
        upstream = torch.randn(len(responses.token), generator=generator)
        return cls(hidden.to(case.dtype), weight.to(case.dtype), responses, upstream)


def dense(case: Case, problem: Problem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, hidden gradient and weight gradient, by log_softmax over the real vocabulary in float64."""
    hidden, weight = (tensor.double().requires_grad_() for tensor in (problem.hidden, problem.weight))
    logits = hidden.flatten(0, 1)[problem.responses.index] @ weight[: case.vocab].t()
    logprobs = torch.log_softmax(logits, -1).gather(1, problem.responses.token.unsqueeze(1)).squeeze(1)
    logprobs.backward(problem.upstream.double())
    return logprobs.detach(), hidden.grad, weight.grad


def by_function(case: Case, problem: Problem) -> list[torch.Tensor]:
    """Of :func:`linear_logprobs`: log-probs, and the gradients of hidden states (summed over ranks) and weight."""
    group, rank = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_tensor_model_parallel_rank()
    hidden = problem.hidden.clone().requires_grad_()
    weight = problem.weight.chunk(group.size())[rank].clone().requires_grad_()
    scored = hidden.flatten(0, 1)[problem.responses.index]
    scored.retain_grad()
    found = linear_logprobs(scored, weight, problem.responses.token, case.vocab, group, case.block_elements)
    assert found.dtype == torch.float32 and found.shape == problem.upstream.shape
    found.backward(problem.upstream)
    total = hidden.grad.float()
    dist.all_reduce(total, group=group)
    return [found.detach(), total, weight.grad]


def by_layer(
    case: Case, problem: Problem, sequence_parallel: bool, logprob_head: str, main_grad: bool
) -> list[torch.Tensor]:
    """The same of the model's output layer, which adds the hidden gradient up itself."""
    group, rank = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_tensor_model_parallel_rank()
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True, params_dtype=case.dtype,
        tensor_model_parallel_size=group.size(), sequence_parallel=sequence_parallel,
    )  # fmt: skip
    layer = ColumnParallelLinear(
        16, case.padded, config=config, init_method=torch.nn.init.zeros_, bias=False, tp_group=group
    )
    ScoringHead.take_over(layer, case.vocab, logprob_head)
    layer.weight.data.copy_(problem.weight.chunk(group.size())[rank])
    if main_grad:  # as Megatron's data parallelism leaves it; something of an earlier micro-batch is there
        layer.weight.main_grad = torch.ones(layer.weight.shape)
        layer.weight.grad_added_to_main_grad = False
        layer.weight.zero_out_wgrad = True
    hidden = problem.hidden.chunk(group.size())[rank] if sequence_parallel else problem.hidden
    hidden = hidden.clone().requires_grad_()
    found = layer(hidden, responses=problem.responses)[0]["logps"]
    found.backward(problem.upstream)
    gradient = hidden.grad
    if sequence_parallel:
        parts = [torch.empty_like(gradient) for _ in range(group.size())]
        dist.all_gather(parts, gradient, group=group)
        gradient = torch.cat(parts)
    if not main_grad:
        return [found.detach(), gradient, layer.weight.grad]
    assert layer.weight.grad_added_to_main_grad and not layer.weight.grad.any()
    return [found.detach(), gradient, layer.weight.main_grad - 1]


def compare(case: Case) -> dict[str, dict[str, float]]:
    """Way → largest differences, relative to the largest expected value; of the weight, on this rank's rows."""
    problem = Problem.of(case)
    size, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    *expected, weight = dense(case, problem)
    expected.append(weight.chunk(size)[rank])
    ways = {
        "function": by_function(case, problem),
        "layer": by_layer(case, problem, False, "chunked", False),
        "layer, main_grad": by_layer(case, problem, False, "chunked", True),
        "layer, all logits": by_layer(case, problem, False, "logits", False),
    }
    if size > 1:
        ways["layer, sequence parallel"] = by_layer(case, problem, True, "chunked", False)
    names = ("logprobs", "hidden gradient", "weight gradient")
    return {
        way: {name: distance(ours, theirs) for name, ours, theirs in zip(names, found, expected, strict=True)}
        | {"gradient of padding": float(found[2][max(case.vocab - rank * len(found[2]), 0) :].abs().sum())}
        for way, found in ways.items()
    }


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
