"""Megatron's optimizer: which Adam it is made of, its step taken apart, and what it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from nemo_rpo.megatron.compat.places import reaches


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


@reaches("megatron.core.optimizer:ChainedOptimizer[chained_optimizers, is_stub_optimizer]")
def parts_of(optimizer: Any) -> list[Any]:
    """The optimizers that ``optimizer`` is chained of, or itself; none that only stands for a stage without any.

    Reason: gradients are clipped, and states written, part by part; a chain has no iterator.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]


class Moved(NamedTuple):
    """A parameter of the model, and the numbers that the optimizer moves for it: those of the flattened parameter from
    ``start`` on, with their moments.
    """

    parameter: Tensor
    start: int
    main: Tensor
    state: dict[str, Tensor]
    everywhere: bool  # every data-parallel rank moves the same numbers


_OPTIMIZER = "megatron.core.optimizer.optimizer:Float16OptimizerWithFloat16Params"
_DISTRIBUTED = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"


@reaches(
    f"{_DISTRIBUTED}[gbuf_ranges, model_param_group_index_map, param_map]",
    f"{_OPTIMIZER}[float16_groups, fp32_from_float16_groups, fp32_from_fp32_groups]",
    "megatron.core.optimizer:MegatronOptimizer[optimizer]",
)
def moved_numbers(optimizer: Any) -> Iterator[Moved]:
    """What this rank's optimizer moves. No collective.

    Reason: Megatron's own sharded state of a distributed optimizer either gathers all of it on one rank or can be read
    under the same layout alone; which rank moves which numbers of a parameter has no public name.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

    for part in parts_of(optimizer):
        inner = part.optimizer
        if isinstance(part, DistributedOptimizer):
            buckets = chain.from_iterable(chain.from_iterable(ranges.values()) for ranges in part.gbuf_ranges)
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    group, order = part.model_param_group_index_map[parameter]
                    main = inner.param_groups[group]["params"][order]
                    yield Moved(parameter, ranges["param"].start, main, inner.state[main], False)
        elif isinstance(part, Float16OptimizerWithFloat16Params):
            of_16_bits = chain.from_iterable(part.float16_groups), chain.from_iterable(part.fp32_from_float16_groups)
            for parameter, main in zip(*of_16_bits, strict=True):
                yield Moved(parameter, 0, main, inner.state[main], True)
            for parameter in chain.from_iterable(part.fp32_from_fp32_groups):
                yield Moved(parameter, 0, parameter, inner.state[parameter], True)
        else:
            for group in inner.param_groups:
                for parameter in group["params"]:
                    yield Moved(parameter, 0, parameter, inner.state[parameter], True)


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
