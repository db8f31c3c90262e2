"""A GPU that computes nothing: torch's device type ``privateuseone`` under ``FakeTensorMode``, and a watch over it.

Tensors on it have shapes and dtypes and no values; tensors of the CPU stay real. So what the engine does with GPU
settings can be run on any machine, and what would hold up or break a GPU is found with its file and line: operands on
two devices, values that the host waits for, shapes that depend on values, copies that wait.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import planted_faults
import torch
import torch.distributed as dist
from paths import ROOT
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TYPE = "fakegpu"
torch.utils.rename_privateuse1_backend(TYPE)  # named, it is the accelerator that backward looks for
DEVICE = torch.device(TYPE, 0)


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1


class _Stream:
    """Everything is in order; only the calls count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    wait_event = wait_stream

    def record_event(self) -> _Stream:
        return self


def install() -> None:
    """Registers the device and lets ``torch.cuda`` and Megatron-Core speak of it; for the whole process.

    Collectives are those of one rank and have nothing to do.
    """
    for name in ("all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(dist, name, lambda *args, **kwargs: None)
    dist.all_gather_object = lambda found, own, group=None: found.__setitem__(0, own)
    torch._C._acc.register_python_privateuseone_device_guard(_Guard())
    torch._C._acc.register_python_privateuseone_hook(_Hooks())
    cuda = torch.cuda
    cuda.current_device = lambda: DEVICE
    cuda.set_device = cuda.manual_seed = lambda value: None
    cuda.get_rng_state = lambda *args: torch.get_rng_state()
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = lambda device=None: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.synchronize = cuda.empty_cache = lambda *args: None
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *args: None
    torch.nn.Module._apply = _apply
    torch.nn.Module.cuda = lambda self, *args: self._apply(lambda tensor: tensor.to(DEVICE, non_blocking=True))
    type_name = torch.Tensor.type
    torch.Tensor.type = lambda self, *args: (
        type_name(self, *args).replace(TYPE, "cuda") if not args else type_name(self, *args)
    )
    import megatron.core.optimizer.clip_grads as clip_grads
    import megatron.core.tensor_parallel.random as random_state

    # Transformer Engine's kernel and apex's give the norm as a tensor; Megatron-Core's own reads each number.
    clip_grads.l2_norm_impl = lambda chunk, flag, lists, *args: (torch.stack([t.norm() for t in lists[0]]).norm(), None)

    random_state._set_cuda_rng_state = lambda *args, **kwargs: None
    random_state._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random_state.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()


def _apply(self: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """``Module._apply``, by new parameters: ``.data`` cannot be set to a fake tensor of another device or dtype."""
    for module in self.modules():
        for name, old in module._parameters.items():
            if old is not None:
                with torch.no_grad():
                    new = torch.nn.Parameter(function(old), old.requires_grad)
                vars(new).update(vars(old))
                module._parameters[name] = new
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return self


class Finding(NamedTuple):
    """What would hurt on a GPU, and the line of the package that does it."""

    what: str
    where: str
    code: str


# Operations whose result the host needs before it can go on.
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "bincount")


class Watch(TorchDispatchMode):
    """Runs operations of the CPU as they are and those of the device on fakes, and collects :class:`Finding` s."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.findings: list[Finding] = []
        self._fakes = fakes
        self._pinned: set[int] = set()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if target == "cuda":
            target, kwargs["device"] = TYPE, DEVICE
        there = any(tensor.device.type == TYPE for tensor in tensors)
        name = func.name().removeprefix("aten::").split(".")[0]
        pinned = bool(kwargs.pop("pin_memory", False))
        if not there and target != TYPE:
            if any(isinstance(tensor, FakeTensor) for tensor in tensors):  # came back from the device
                return func(*args, **kwargs)
            with unset_fake_temporarily():
                made = func(*args, **kwargs)
            if pinned:
                self._pinned.add(made.untyped_storage().data_ptr())
            return made
        if name == "empty_like" and target == "cpu":  # a real buffer for what will come from the device
            with unset_fake_temporarily():
                made = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if pinned:
                self._pinned.add(made.untyped_storage().data_ptr())
            return made
        for what in self._objections(name, tensors, there, target, args, kwargs):
            self._find(what)
        if name == "_local_scalar_dense":
            return 1.0 if args[0].dtype.is_floating_point else 1
        if name == "masked_select":  # as if the mask chose everything; the wait is found above
            return args[0].broadcast_to(args[1].shape).reshape(-1)
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, self._fake, (args, kwargs))
        return func(*args, **kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self._fakes.from_tensor(tensor)

    def _objections(
        self, name: str, tensors: list[Tensor], there: bool, target: str | None, args: tuple, kwargs: dict
    ) -> Iterator[str]:
        masks = [tensor for tensor in tensors[1:] if tensor.dtype in (torch.bool, torch.uint8)]
        if there and name in _WAITS:
            yield f"the host waits for {name}"
        elif there and name == "repeat_interleave" and kwargs.get("output_size") is None:
            yield "the host waits for the sum of repeat_interleave: give output_size"
        elif there and name in ("index", "index_put", "index_put_") and masks and not self._fills(name, args):
            yield f"the host waits for {name} with a mask"
        elif name in ("_to_copy", "copy_"):
            source = tensors[-1] if name == "copy_" else tensors[0]
            to = tensors[0].device.type if name == "copy_" else target or source.device.type
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
            if source.device.type != to and source.dim() == 0 and name == "copy_":
                return
            if {source.device.type, to} == {"cpu", TYPE}:
                host = source if to == TYPE else tensors[0] if name == "copy_" else None
                if blocking:
                    yield f"a copy {'to' if to == TYPE else 'from'} the device that the host waits for"
                elif host is None or not self._is_pinned(host):
                    yield f"a copy {'to' if to == TYPE else 'from'} the device through memory that is not pinned"
        elif there and any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors):
            yield f"{name} of tensors on two devices"

    @staticmethod
    def _fills(name: str, args: tuple) -> bool:
        """Whether one number is put where the mask says, which torch does without looking for the places."""
        return name != "index" and args[2].numel() == 1

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, FakeTensor) and tensor.untyped_storage().data_ptr() in self._pinned

    def _find(self, what: str) -> None:
        self.findings.append(Finding(what, *_line(traceback.extract_stack())))

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """What ends in an exception inside (a fake tensor's refusal above all) is a finding too."""
        try:
            yield
        except Exception as exc:
            sentence = " ".join(str(exc).split())[:200]
            frames = traceback.extract_tb(exc.__traceback__)
            self.findings.append(Finding(f"{type(exc).__name__}: {sentence}", *_line(frames)))


_OURS = (f"{ROOT / 'nemo_rpo'}{os.sep}", str(Path(planted_faults.__file__)))


def _line(frames: Sequence[traceback.FrameSummary]) -> tuple[str, str]:
    """The innermost line of the package (or of a planted fault), else the innermost of all."""
    frame = next((frame for frame in reversed(frames) if frame.filename.startswith(_OURS)), frames[-1])
    path = Path(frame.filename)
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return f"{name}:{frame.lineno}", frame.line or ""


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Inside, operations on the device are fake and looked at."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes, Watch(fakes) as watch:
        yield watch
