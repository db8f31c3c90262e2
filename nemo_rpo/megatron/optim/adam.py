"""torch's AdamW in the shape of Fused Adam, where neither Transformer Engine nor apex is installed, and on CPUs.

Megatron-Core then falls back to ``torch.optim.AdamW``, which counts steps beside each parameter; its distributed
optimizer can write such a checkpoint but not read it back. Fused Adam counts steps once a parameter group. The class
here does the same around torch's own kernel, so one checkpoint format serves CPUs and GPUs.
"""

from __future__ import annotations

from typing import Any

import torch

from nemo_rpo.megatron.compat.megatron_optimizer import adam_in_use, use_adam
from nemo_rpo.megatron.compat.torch_internals import fused_adamw


class TorchFusedAdam(torch.optim.Optimizer):
    """AdamW with decoupled weight decay; ``step`` stands in the parameter group. Arguments as Fused Adam's."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float,
                 adam_w_mode: bool = True, capturable: bool = False) -> None:  # fmt: skip
        assert adam_w_mode and not capturable, "Megatron asked for an Adam that this run never configures"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One AdamW step over all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            before = group.get("step", 0)
            group["step"] = before + 1
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
            states = [self.state[parameter] for parameter in parameters]
            fused_adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                # Filled on the device: a number that is copied there would wait for all that runs.
                [torch.full((), float(before), device=parameter.device) for parameter in parameters],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def install_where_needed(on_gpu: bool) -> bool:
    """Makes Megatron's optimizers use :class:`TorchFusedAdam` if they would use torch's AdamW, or a GPU's on a CPU.

    Returns whether they do.
    """
    adam, fused = adam_in_use()
    if fused and on_gpu:
        return adam is TorchFusedAdam
    use_adam(TorchFusedAdam)
    return True
