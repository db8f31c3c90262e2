"""Megatron's optimizer (plain or distributed), its learning-rate schedule, and a step that a NaN cannot pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_rpo.config.arithmetic.rate import RateSchedule
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.compat.megatron_optimizer import step_if
from nemo_rpo.megatron.optim.adam import install_where_needed

_DECAY_STYLES = {"CosineAnnealing": "cosine", "linear": "linear", "constant": "constant"}


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did: whether the weights moved, and the gradient norm before clipping (nan or inf when it
    was skipped for that).
    """

    updated: bool
    grad_norm: float


def wrap_data_parallel(
    chunks: list[torch.nn.Module], config: TransformerConfig, cfg: RunConfig
) -> list[DistributedDataParallel]:
    """Megatron's DDP around each chunk: gradients are averaged over the data-parallel group, in fp32."""
    optim = cfg.model.optim
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=optim.name == "distributed_fused_adam",
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=optim.overlap_grad_sync,
        overlap_param_gather=optim.overlap_param_sync,
    )
    wrapped = [
        # Only the first chunk splits its buffer: Megatron overlaps its reduction with the backward pass of the others.
        DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    for chunk in wrapped:
        chunk.broadcast_params()
    return wrapped


def build_optimizer(chunks: list[DistributedDataParallel], cfg: RunConfig) -> Any:
    """The Megatron optimizer for ``chunks``, plain or distributed."""
    optim, bf16 = cfg.model.optim, cfg.trainer.precision == "bf16"
    install_where_needed(cfg.trainer.accelerator == "gpu")
    return get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            min_lr=optim.sched.min_lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.betas[0],
            adam_beta2=optim.betas[1],
            adam_eps=optim.eps,
            clip_grad=cfg.trainer.dpo.gradient_clip_val,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=optim.name == "distributed_fused_adam",
            overlap_param_gather=optim.overlap_param_sync,
        ),
        chunks,
    )


def build_scheduler(optimizer: Any, cfg: RunConfig, total_steps: int) -> OptimizerParamScheduler:
    """Linear warm-up, then cosine, linear or constant; ``constant_steps`` at ``min_lr`` close the run.

    The engine advances it *before* an optimizer step, so that step n runs at the rate of n. The steps are those of
    :class:`nemo_rpo.config.arithmetic.rate.RateSchedule`.
    """
    sched, steps = cfg.model.optim.sched, RateSchedule.of(cfg.model.optim.sched, total_steps)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=cfg.model.optim.lr,
        min_lr=sched.min_lr,
        lr_warmup_steps=steps.peak,
        lr_decay_steps=steps.end,
        lr_decay_style=_DECAY_STYLES[sched.name],
        start_wd=cfg.model.optim.weight_decay,
        end_wd=cfg.model.optim.weight_decay,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def guarded_step(optimizer: Any, clip_grad: float) -> StepOutcome:
    """Clips and steps, unless the gradient norm is NaN or infinite; then nothing moves, on any rank.

    The norm is global (one all-reduce inside Megatron), hence every rank takes the same branch.
    """
    return StepOutcome(*step_if(optimizer, clip_grad, math.isfinite))
