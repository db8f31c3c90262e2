"""The rank of ``test_precision.py``: the engine with FP8 emulated, the one part of it that needs a card.

In the place of Transformer Engine's autocast every matrix product inside a layer rounds both of its operands to e4m3
under a scale of the tensor at hand. Where the recipe is entered, who is switched to what and what step 0 says of it is
the engine's own.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from engine import Engine, engine, places
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_rpo.errors import ReferencePolicyError

FULL_RECOMPUTE = [
    "model.activations_checkpoint_granularity=full",
    "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]
FP8, BF16 = "model.rpo.logprob_precision=fp8_tensorwise", "model.rpo.reference_logprob_precision=bf16"
ROUGH = "model.rpo.step0_tolerance=0.5"
RUNS = {
    "swapped": [FP8],
    "resident": [FP8, "model.rpo.reference=resident"],
    "cached": [FP8, "model.rpo.reference=cached"],
    "recompute": [FP8, *FULL_RECOMPUTE],
    "reference alone": ["model.rpo.reference_logprob_precision=fp8_tensorwise"],
    "asymmetric": [FP8, BF16],
    "asymmetric, resident": [FP8, BF16, "model.rpo.reference=resident"],
    "asymmetric, allowed": [FP8, BF16, ROUGH],
    "asymmetric, steep link": [FP8, BF16, ROUGH, "model.rpo.base_loss=ipo", "model.dpo.ref_policy_kl_penalty=0.01"],
    "bf16": [],
}


class E4M3Products(TorchDispatchMode):
    """Rounds the operands of every matrix product to 4 + 3 bits, under a scale of the tensor at hand."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.mm.default:
            args = tuple(map(self._rounded, args))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(tensor: torch.Tensor) -> torch.Tensor:
        scale = 448 / tensor.abs().max().clamp(min=1e-12)
        return (tensor * scale).to(torch.float8_e4m3fn).to(tensor.dtype) / scale


def emulated(precision: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if precision == "bf16" else E4M3Products()


def experiment(run: Engine) -> dict[str, Any]:
    from nemo_rpo.training.reference.step0 import check_step0

    batch = run.batch(0)
    off = [
        (logprobs[side] - micro_batch[f"ref_policy_log_probs_{side}"]).abs().max().item()
        for micro_batch, logprobs in zip(batch, run.model.get_logprob_batch(batch), strict=True)
        for side in ("chosen", "rejected")
    ]
    found: dict[str, Any] = {"largest difference": max(off), "refused": None}
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            check_step0(run.model, batch, run.cfg)
        except ReferencePolicyError as error:
            found["refused"] = str(error)
    found["said"] = said.getvalue()
    metrics, outcome = run.train_step(batch)
    return found | {"loss": metrics["loss"], "grad_norm": outcome.grad_norm}


def main() -> None:
    """``argv``: the world's folder, the folder to write to."""
    world, out = Path(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("nemo_rpo.config.validate.check_precision"))  # which says that a CPU has no FP8
        for name, overrides in RUNS.items():
            with _engine([*places(world, out / name), "model.encoder_seq_length=32", *overrides]) as run:
                found[name] = experiment(run)
    (out / "found.json").write_text(json.dumps(found))


@contextlib.contextmanager
def _engine(overrides: list[str]) -> Iterator[Engine]:
    from nemo_rpo.megatron import cpu

    cpu.install()
    with (
        mock.patch("nemo_rpo.megatron.network.build.check_machine"),
        mock.patch("nemo_rpo.megatron.network.precision.transformer_engine_recipe", emulated),
        engine(overrides) as run,
    ):
        yield run


if __name__ == "__main__":
    main()
