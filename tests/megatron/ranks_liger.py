"""Each rank of ``test_liger.py``: Liger's kernels in the output layer, run by Triton's interpreter on a CPU."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

from nemo_rpo.megatron import cpu

cpu.install()

import torch.distributed as dist
from megatron.core import parallel_state
from ranks_linear_logprob import Case, Problem, by_layer, dense
from ranks_logprob import distance

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.launch import call_and_leave
from nemo_rpo.megatron import parallel

CASES = {"padded vocabulary": Case(), "no padding": Case(vocab=48), "no response token": Case(vocab=48, answered=0.0)}


def compare(case: Case, sequence_parallel: bool) -> dict[str, float]:
    """Largest differences to dense ones in float64, relative to the largest of these."""
    problem, rank = Problem.of(case), parallel_state.get_tensor_model_parallel_rank()
    *expected, weight = dense(case, problem)
    expected.append(weight.chunk(parallel_state.get_tensor_model_parallel_world_size())[rank])
    found = by_layer(case, problem, sequence_parallel, "liger", False)
    names = ("logprobs", "hidden gradient", "weight gradient")
    return {name: distance(ours, theirs) for name, ours, theirs in zip(names, found, expected, strict=True)}


def main() -> int:
    """``argv``: the folder to write ``TP.RANK.json`` to."""
    # It insists on a GPU before it takes the way that needs none.
    with mock.patch("liger_kernel.ops.fused_linear_scaled_cross_entropy._validate_tp_inputs"):
        for tensor in (1, 2):
            cfg = RunConfig()
            cfg.trainer.accelerator, cfg.model.tensor_model_parallel_size = "cpu", tensor
            parallel.initialize(cfg)
            found = {
                f"{name}{', sequence parallel' * sequence}": compare(case, sequence)
                for name, case in CASES.items()
                for sequence in (False, True)[:tensor]
                if tensor == 1 or case.vocab == case.padded
            }
            (Path(sys.argv[1]) / f"{tensor}.{dist.get_rank()}.json").write_text(json.dumps(found))
            parallel.finalize()
    return 0


if __name__ == "__main__":
    # Megatron-Core holds groups, whose threads could abort the interpreter.
    call_and_leave(main)
