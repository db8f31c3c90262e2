"""Megatron-Core on a CPU: everything that makes the engine run over gloo ranks stands here and nowhere else.

This is to CPU runs what :mod:`nemo_rpo.megatron.compat` is to all runs, and the only other module that replaces names
of torch and Megatron-Core or uses private ones.

Megatron-Core is written for CUDA. Its mathematics, schedules and collectives do not need it; what stands in the way is
device *names*. :func:`install` therefore

* answers ``torch.cuda.current_device()`` with the CPU and turns streams, events, NVTX ranges and cache calls into
  no-ops,
* maps ``torch.cuda``'s random state to torch's own generator (``model_parallel_cuda_manual_seed`` then works as on a
  GPU),
* lets the tensor factories and ``Tensor.cuda/.to`` read the device name ``"cuda"`` as ``"cpu"``,
* lets ``Tensor.type()`` answer ``torch.cuda.FloatTensor``, which the optimizer asserts on,
* keeps ``jit_fuser`` from compiling (a C++ build per fused operation would cost more than a CPU run),
* turns the sizes by which experts' tokens are exchanged into numbers,
* sends the matrix products of the layers through oneDNN (:mod:`nemo_rpo.megatron.cpu.matmul`).

Only factories are wrapped, not every torch call (a ``TorchFunctionMode`` would tax each operation of the step). The
changes hold for the whole process, so only the entry points of a ``trainer.accelerator: cpu`` run call :func:`install`;
importing this module changes nothing. With a usable GPU the engine never comes here.

What stays out of reach on a CPU: grouped products of experts, FP8, and THD packing and ring attention as Transformer
Engine has them (experts run one by one, packs and context parallelism on torch's own attention here).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from typing import Any

import torch
import torch.utils._device

from nemo_rpo.megatron.cpu.matmul import through_onednn

CPU = torch.device("cpu")
_FACTORIES = (
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "rand",
    "randn",
    "empty_like",
    "zeros_like",
    "ones_like",
    "as_tensor",
)
_installed = False


def _on_cpu(device: Any) -> Any:
    """``device`` with every CUDA name replaced by the CPU; anything else unchanged."""
    if isinstance(device, torch.device):
        return CPU if device.type == "cuda" else device
    if isinstance(device, str) and device.startswith("cuda"):
        return CPU
    return device


def _wrap_factory(factory: Any) -> Any:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return on_cpu


class _NoStream:
    """Stands for ``torch.cuda.Stream`` and ``Event``: on a CPU everything is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def wait_stream(self, *args: Any) -> None:
        pass

    wait_event = synchronize = record = wait_stream

    def record_event(self, *args: Any) -> _NoStream:
        return self

    def query(self) -> bool:
        return True


def _patch_cuda_module() -> None:
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.set_device = lambda device: None
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *args: None
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    cuda.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = lambda device=None: _NoStream()
    cuda.stream = lambda stream=None: contextlib.nullcontext()


def _patch_tensors() -> None:
    # torch keeps the factories that `with torch.device(...)` serves from the first such block on. It has to have seen
    # the real ones: else transformers, which builds models on "meta" that way, fills in nothing and leaves buffers such
    # as the rotary frequencies uninitialised.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _wrap_factory(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    to, type_name = torch.Tensor.to, torch.Tensor.type

    @functools.wraps(to)
    def to_cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        return to(self, *(_on_cpu(arg) for arg in args), **kwargs)

    @functools.wraps(type_name)
    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_name(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.to, torch.Tensor.type = to_cpu, cuda_type


def _split_sizes(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Megatron makes numbers of those tensors alone that are on a GPU, and torch.distributed wants numbers."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _patch_megatron() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Apex is not installed": said once, in plain words, by the start-up log
        import megatron.core.tensor_parallel.random as random_state
        from megatron.core.transformer.moe import token_dispatcher
    token_dispatcher.maybe_move_tensor_to_cpu = _split_sizes
    random_state._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    random_state._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()


def install() -> None:
    """Makes Megatron-Core run on this process's CPU. Idempotent; call before ``megatron.core`` is imported."""
    global _installed
    if _installed:
        return
    _installed = True
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if "torch._dynamo" in sys.modules:
        torch._dynamo.config.disable = True
    # Megatron asks for one connection a device when it overlaps tensor parallelism; harmless here, and asserted on.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    _patch_cuda_module()
    _patch_tensors()
    torch.matmul, torch.Tensor.matmul = through_onednn(torch.matmul), through_onednn(torch.Tensor.matmul)
    _patch_megatron()
