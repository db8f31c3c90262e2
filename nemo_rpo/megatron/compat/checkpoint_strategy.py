"""Megatron's writer of distributed checkpoints, below its one function that does everything."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_rpo.megatron.compat.places import reaches

_STRATEGIES = "megatron.core.dist_checkpointing.strategies"


@reaches(
    f"{_STRATEGIES}.torch:TorchDistSaveShardedStrategy",
    f"{_STRATEGIES}.fully_parallel:FullyParallelSaveStrategyWrapper(strategy, parallelization_group, "
    "do_cache_distribution)",
)
def save_strategy(group: dist.ProcessGroup) -> Any:
    """Writes what several ranks of ``group`` hold once, each rank a share of it, settled at the first save.

    Reason: ``dist_checkpointing.save`` makes a strategy anew at each call, checks and settles everything again, and
    writes a common state by pickle.
    """
    from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

    log = logging.getLogger(torch_strategy.__name__)
    if _no_advice not in log.filters:
        log.addFilter(_no_advice)
    strategy = torch_strategy.TorchDistSaveShardedStrategy("torch_dist", 1)
    return FullyParallelSaveStrategyWrapper(strategy, group, do_cache_distribution=True)


def _no_advice(line: logging.LogRecord) -> bool:
    return "async save is deprecated" not in str(line.msg)


@reaches(
    f"{_STRATEGIES}.fully_parallel:FullyParallelSaveStrategyWrapper.async_save(sharded_state_dict, checkpoint_dir)",
    f"{_STRATEGIES}.async_utils:AsyncRequest[async_fn, finalize_fns]",
    "megatron.core.dist_checkpointing.state_dict_utils:save_preprocess(sharded_state_dict)",
)
def async_save(strategy: Any, state: Mapping[str, Any], folder: Path) -> Any:
    """Begins to write ``state`` into ``folder``; the request that an ``AsyncCallsQueue`` takes.

    Reason: as :func:`save_strategy`. Since 0.19 the default way to write needs a package of its own
    (``async_strategy``); Megatron-Core's own is the one that all supported releases have.
    """
    takes = inspect.signature(type(strategy).async_save).parameters
    own = {"async_strategy": "mcore"} if "async_strategy" in takes else {}
    return strategy.async_save(state, str(folder), **own)
