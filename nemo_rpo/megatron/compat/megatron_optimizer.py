"""Megatron's optimizer: which Adam it is made of, and its step taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_rpo.megatron.compat.reaches import reaches


@reaches("megatron.core.optimizer.distrib_optimizer:HAVE_APEX_OR_TE", "megatron.core.optimizer:Adam")
def adam_in_use() -> tuple[type, bool]:
    """The Adam class that Megatron's optimizers are made of, and whether they take it for a fused one.

    Reason: which one it is, is decided where Megatron is imported, by what else is installed.
    """
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    return optimizer.Adam, distributed.HAVE_APEX_OR_TE


@reaches(
    "megatron.core.optimizer:Adam",
    "megatron.core.optimizer:USING_PYTORCH_OPTIMIZER",
    "megatron.core.optimizer.distrib_optimizer:Adam",
    "megatron.core.optimizer.distrib_optimizer:HAVE_APEX_OR_TE",
    "megatron.core.optimizer.distrib_optimizer:USING_TE_OPTIMIZER",
)
def use_adam(adam: type) -> None:
    """Makes Megatron's optimizers of ``adam``, whose state has the shape of Transformer Engine's FusedAdam.

    Reason: without Transformer Engine and apex they are made of torch's AdamW, and the distributed optimizer cannot
    read a checkpoint of that back; on a CPU with Transformer Engine installed, of a class that needs a GPU. There is
    no argument for it. The flags decide which layout of the state is written.
    """
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    optimizer.Adam = distributed.Adam = adam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = distributed.USING_TE_OPTIMIZER = True


@reaches("megatron.core.optimizer:ChainedOptimizer[chained_optimizers]")
def parts_of(optimizer: Any) -> list[Any]:
    """The optimizers that ``optimizer`` is chained of; itself alone where it is none of that kind.

    Reason: gradients are clipped, and states written, part by part; a chain has no iterator.
    """
    return getattr(optimizer, "chained_optimizers", [optimizer])


@reaches(
    "megatron.core.optimizer:MegatronOptimizer.prepare_grads",
    "megatron.core.optimizer:MegatronOptimizer.get_grad_norm",
    "megatron.core.optimizer:MegatronOptimizer.step_with_ready_grads",
    "megatron.core.optimizer:MegatronOptimizer.step",
    "megatron.core.optimizer:ChainedOptimizer.prepare_grads",
    "megatron.core.optimizer:ChainedOptimizer.get_grad_norm",
    "megatron.core.optimizer:ChainedOptimizer.step_with_ready_grads",
    "megatron.core.optimizer:MegatronOptimizer.get_parameters",
    "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32(parameters, max_norm, total_norm)",
)
def step_if(optimizer: Any, clip_grad: float, allowed: Callable[[float], bool]) -> tuple[bool, float]:
    """One step, clipped to ``clip_grad`` (0: not clipped), if there is no overflow and the gradient norm is
    ``allowed``. Returns whether it was made, and the norm before clipping.

    Reason: Megatron's own ``step`` looks at the norm under a loss scaler alone, so fp32 and bf16 would step into a NaN.
    These are the calls that it makes, in its order, with a question between them. Collectives: the norm's all-reduce;
    a distributed optimizer's gather of parameters.
    """
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    overflow = optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if overflow or not allowed(norm):
        return False, norm
    for part in parts_of(optimizer) if clip_grad > 0 else []:
        if parameters := part.get_parameters():
            clip_grad_by_total_norm_fp32(parameters, max_norm=clip_grad, total_norm=norm)
    return bool(optimizer.step_with_ready_grads()), norm
