"""Each rank of ``test_linear_kl.py``: the divergence of a frozen policy by blocks of the vocabulary, alone and in the
output layer beside log-probs, and its gradients, against dense ones in float64.
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
from ranks_linear_logprob import CASES as LOGPROB_CASES
from ranks_linear_logprob import Case, Problem
from ranks_logprob import distance

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.batch.head_outputs import FrozenPredictions, HeadRequest
from nemo_rpo.megatron.logprobs.divergence import linear_kl
from nemo_rpo.megatron.network.gpt import ScoringHead

SAME = "the same policy"
CASES = LOGPROB_CASES | {SAME: Case()}


@dataclass(frozen=True)
class KLProblem:
    """A frozen policy beside the policy of a :class:`Problem`: its scored hidden states [n, h] and head [padded, h]."""

    policy: Problem
    hidden: torch.Tensor
    weight: torch.Tensor
    upstream: torch.Tensor  # of the log-probs, where both are asked for

    @classmethod
    def of(cls, case: Case, same: bool) -> KLProblem:
        policy, generator = Problem.of(case), torch.Generator().manual_seed(8)
        scored, shape = policy.hidden.flatten(0, 1)[policy.responses.index], policy.weight.shape
        if same:
            return cls(policy, scored, policy.weight, policy.upstream.flip(0))
        hidden = scored + 0.5 * case.spread * torch.randn(scored.shape, generator=generator).to(case.dtype)
        weight = policy.weight + 0.5 * torch.randn(shape, generator=generator).to(case.dtype)
        return cls(policy, hidden, weight, policy.upstream.flip(0))


def dense(case: Case, problem: KLProblem, with_logprobs: bool) -> list[torch.Tensor]:
    """The divergence, hidden gradient and weight gradient, over the real vocabulary in float64."""
    hidden, weight = (tensor.double().requires_grad_() for tensor in (problem.policy.hidden, problem.policy.weight))
    responses = problem.policy.responses
    log_p = torch.log_softmax(hidden.flatten(0, 1)[responses.index] @ weight[: case.vocab].t(), -1)
    log_q = torch.log_softmax(problem.hidden.double() @ problem.weight[: case.vocab].double().t(), -1)
    kl = torch.where(log_q.exp() > 0, log_q.exp() * (log_q - log_p), 0.0).sum(-1)
    objective = (kl * problem.policy.upstream.double()).sum()
    if with_logprobs:
        logprobs = log_p.gather(1, responses.token.unsqueeze(1)).squeeze(1)
        objective = objective + (logprobs * problem.upstream.double()).sum()
    objective.backward()
    return [kl.detach(), hidden.grad, weight.grad]


def by_function(case: Case, problem: KLProblem) -> list[torch.Tensor]:
    """Of :func:`linear_kl`: the divergence, and the gradients of hidden states (summed over ranks) and weight."""
    group, rank = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_tensor_model_parallel_rank()
    hidden = problem.policy.hidden.clone().requires_grad_()
    weight = problem.policy.weight.chunk(group.size())[rank].clone().requires_grad_()
    frozen = problem.hidden, problem.weight.chunk(group.size())[rank]
    scored = hidden.flatten(0, 1)[problem.policy.responses.index]
    found = linear_kl(scored, weight, *frozen, case.vocab, group, case.block_elements)
    assert found.dtype == torch.float32 and found.shape == problem.upstream.shape
    found.backward(problem.policy.upstream)
    total = hidden.grad.float()
    dist.all_reduce(total, group=group)
    return [found.detach(), total, weight.grad]


def by_layer(case: Case, problem: KLProblem, sequence_parallel: bool) -> list[torch.Tensor]:
    """The same of the model's output layer, log-probs asked for in the same breath and both with a gradient."""
    group, rank = parallel_state.get_tensor_model_parallel_group(), parallel_state.get_tensor_model_parallel_rank()
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, use_cpu_initialization=True, params_dtype=case.dtype,
        tensor_model_parallel_size=group.size(), sequence_parallel=sequence_parallel,
    )  # fmt: skip
    layer = ColumnParallelLinear(
        16, case.padded, config=config, init_method=torch.nn.init.zeros_, bias=False, tp_group=group
    )
    ScoringHead.take_over(layer, case.vocab, logprob_head="chunked")
    layer.weight.data.copy_(problem.policy.weight.chunk(group.size())[rank])
    layer.weight.main_grad = torch.zeros(layer.weight.shape)
    layer.weight.grad_added_to_main_grad = False
    hidden = problem.policy.hidden
    hidden = (hidden.chunk(group.size())[rank] if sequence_parallel else hidden).clone().requires_grad_()
    frozen = FrozenPredictions(problem.hidden, problem.weight.chunk(group.size())[rank])
    found, _ = layer(hidden, responses=problem.policy.responses, request=HeadRequest(kl=frozen))
    torch.autograd.backward([found["kl"], found["logps"]], [problem.policy.upstream, problem.upstream])
    gradient = hidden.grad
    if sequence_parallel:
        parts = [torch.empty_like(gradient) for _ in range(group.size())]
        dist.all_gather(parts, gradient, group=group)
        gradient = torch.cat(parts)
    return [found["kl"].detach(), gradient, layer.weight.main_grad]


def compare(name: str, case: Case) -> dict[str, dict[str, float]]:
    """Way → largest differences, relative to the largest expected value; of the weight, on this rank's rows."""
    problem = KLProblem.of(case, same=name == SAME)
    size, rank = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    ways = {"function": (False, by_function(case, problem)), "layer": (True, by_layer(case, problem, False))}
    if size > 1:
        ways["layer, sequence parallel"] = True, by_layer(case, problem, True)
    names, compared = ("kl", "hidden gradient", "weight gradient"), {}
    for way, (with_logprobs, found) in ways.items():
        *expected, weight = dense(case, problem, with_logprobs)
        expected.append(weight.chunk(size)[rank])
        padding = found[2][max(case.vocab - rank * len(found[2]), 0) :]
        compared[way] = {
            **{part: distance(ours, theirs) for part, ours, theirs in zip(names, found, expected, strict=True)},
            "gradient of padding": float(padding.abs().sum()),
            "largest kl": float(found[0].abs().max()) if len(found[0]) else 0.0,
        }
    return compared


def main() -> None:
    """``argv``: the folder to write ``TP.RANK.json`` to."""
    for tensor in (1, 2):
        cfg = RunConfig()
        cfg.trainer.accelerator, cfg.model.tensor_model_parallel_size = "cpu", tensor
        parallel.initialize(cfg)
        found = {name: compare(name, case) for name, case in CASES.items()}
        (Path(sys.argv[1]) / f"{tensor}.{dist.get_rank()}.json").write_text(json.dumps(found))
        parallel.finalize()


if __name__ == "__main__":
    main()
