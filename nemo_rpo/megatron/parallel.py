"""Process groups: which rank holds which slice of the model and which share of the batch.

One process is one rank. ``initialize`` reads torchrun's environment (a single process needs none), starts NCCL on GPUs
or gloo on CPUs, and builds Megatron-Core's groups.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import os
import socket
import warnings

import torch
import torch.distributed as dist
from megatron.core import __version__ as megatron_version
from megatron.core import parallel_state, tensor_parallel

from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.compat.releases import check_megatron_core


def world_size() -> int:
    """Ranks that were started: torchrun's ``WORLD_SIZE``, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _single_process_environment() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        os.environ.setdefault(name, str(value))


_starts = itertools.count()


def _start_process_group(backend: str, timeout: datetime.timedelta) -> None:
    start = next(_starts)
    if start:
        gc.collect()  # the run before's groups: each is a thread of gloo's that wakes 100 times a second
    store, rank, ranks = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun's store outlives a process group: under the same keys, a second one would call on the addresses of the
    # first.
    store = dist.PrefixStore(f"nemo_rpo/{start}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


def initialize(cfg: RunConfig) -> torch.device:
    """Starts ``torch.distributed`` and Megatron's model-parallel groups; seeds the model-parallel random state. Returns
    this rank's device.

    The layout must have been checked (:func:`nemo_rpo.config.validate.validate_parallel`): Megatron answers a bad one
    with an assertion. Raises :class:`ReleaseError` for a release of Megatron-Core that is not supported.
    """
    if notice := check_megatron_core(megatron_version):
        print_on_first_rank(notice)
    # Megatron's own, about its internals; one line a rank and a kind.
    warnings.filterwarnings("ignore", module=r"megatron\.|torch\.distributed\.")
    if "RANK" not in os.environ:
        _single_process_environment()
    on_gpu = cfg.trainer.accelerator == "gpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if not dist.is_initialized():
        minutes = datetime.timedelta(minutes=cfg.trainer.distributed_timeout_minutes)
        _start_process_group("nccl" if on_gpu else "gloo", minutes)
    model = cfg.model
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
        context_parallel_size=model.context_parallel_size,
        expert_model_parallel_size=model.expert_model_parallel_size,
        expert_tensor_parallel_size=model.expert_tensor_parallel_size,
        distributed_timeout_minutes=cfg.trainer.distributed_timeout_minutes,
    )
    torch.manual_seed(model.seed)
    tensor_parallel.model_parallel_cuda_manual_seed(model.seed)
    return device


def finalize() -> None:
    """Leaves the process groups, so that a second run in one process starts clean."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def data_parallel_rank() -> int:
    """This rank's number in its data-parallel group."""
    return parallel_state.get_data_parallel_rank()


def data_parallel_size() -> int:
    """Ranks that share the global batch."""
    return parallel_state.get_data_parallel_world_size()


def independent_replica() -> tuple[int, int]:
    """This rank's number among the replicas that may run different forwards, or different numbers of them, and how many
    these are: the data-parallel ranks, or one where they share experts, since each forward is then one of all of them.
    """
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        return 0, 1
    return data_parallel_rank(), data_parallel_size()


def is_last_stage() -> bool:
    """True on ranks of the last pipeline stage, the only ones that see log-probs."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)
