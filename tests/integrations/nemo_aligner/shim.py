"""NeMo-Aligner 0.7.0 with NeMo 2.1.0 and Megatron-Core 0.10.0 on a CPU; for tests alone.

NeMo's language models are written for an image with CUDA, NVIDIA's apex and Transformer Engine. What the DPO recipe
needs of those three is little, and stands here: :func:`install` first of all imports of NeMo, then, with NeMo imported,
:func:`complete_nemo`. apex, Transformer Engine and modelopt themselves stay absent, for NeMo asks whether they are
there and goes other ways. Everything holds for the whole process.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
import types
from typing import Any

import torch

from nemo_rpo.megatron import cpu
from nemo_rpo.megatron.optim.adam import TorchFusedAdam

# Packages of NeMo's other collections, imported with it at the head of modules and never called here.
_NEVER_CALLED = frozenset(
    "onnx h5py ijson sklearn sacrebleu rouge_score jieba opencc pangu joblib datasets tensorstore zarr".split()
)


@functools.cache
def install() -> None:
    """Device names, absent packages and Megatron-Core; before NeMo or Megatron are imported."""
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "24.07")  # NeMo parses it, and fails where it is not set
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # of its checkpoints, the common part is a pickle
    sys.meta_path.append(_NeverCalled())  # last: a package that is installed after all comes before it
    cpu.install()
    torch.jit.script = lambda function, *args, **kwargs: function  # it cannot read the factories that cpu has wrapped
    _complete_cuda()
    _complete_megatron()


def _complete_cuda() -> None:
    """What NeMo asks of ``torch.cuda`` beyond what Megatron does."""
    cuda = torch.cuda
    for name in ("FloatTensor", "HalfTensor", "BFloat16Tensor", "IntTensor", "LongTensor"):
        setattr(cuda, name, getattr(torch, name))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *args, **kwargs: 0)
    cuda.mem_get_info = lambda *args, **kwargs: (0, 0)


def _complete_megatron() -> None:
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    from_torch = WrappedTorchNorm.__new__

    def with_mark(cls: type, config: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """The fallback refuses sequence parallelism, which needs a mark on the parameters and no more."""
        wanted, config.sequence_parallel = config.sequence_parallel, False
        try:
            norm = from_torch(cls, config, *args, **kwargs)
        finally:
            config.sequence_parallel = wanted
        for parameter in norm.parameters():
            parameter.sequence_parallel = wanted
        return norm

    WrappedTorchNorm.__new__ = with_mark
    optimizer.Adam = distributed.Adam = TorchFusedAdam
    distributed.HAVE_APEX_OR_TE = True
    _write_items_as_before()


def _write_items_as_before() -> None:
    """torch 2.7 gave ``_write_item`` two more arguments; Megatron-Core 0.10 calls it with the old ones."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as writer
    from torch.distributed.checkpoint import filesystem

    write = filesystem._write_item
    if "transforms" not in inspect.signature(write).parameters:
        return
    head, tail = filesystem._StorageWriterTransforms(), filesystem.SerializationFormat.TORCH_SAVE
    writer._write_item = lambda stream, data, item, key: write(head, stream, data, item, key, tail)


@functools.cache
def complete_nemo() -> None:
    """In the place of apex's and Transformer Engine's functions their equals in Megatron-Core and torch."""
    _complete_strategy()
    _complete_gradients()
    _complete_models()
    _complete_adapters()
    from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS

    AVAILABLE_OPTIMIZERS["adamw"] = _NeMoAdamW


class _NeMoAdamW(TorchFusedAdam):
    """With a step count that Megatron's checkpoint of the optimizer can hold; defaults are torch's."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, **kwargs: Any) -> None:  # fmt: skip
        super().__init__(params, lr, tuple(betas), eps, weight_decay)


def _complete_strategy() -> None:
    from nemo.collections.nlp.parts import nlp_overrides
    from nemo.core.optim.mcore_optim import McoreDistributedOptimizer

    nlp_overrides.HAVE_APEX = True  # else the DDP strategy is not to be built
    nlp_overrides.McoreDistributedOptimizer = McoreDistributedOptimizer
    nlp_overrides.MegatronDistributedFusedAdam = type("MegatronDistributedFusedAdam", (), {})
    nlp_overrides.init_optimizer_states = _give_states


def _give_states(optimizer: torch.optim.Optimizer) -> None:
    """What a checkpoint is loaded into; NeMo's own function knows torch's and apex's optimizers alone."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}


def _complete_gradients() -> None:
    from megatron.core import tensor_parallel
    from megatron.core.optimizer import clip_grads as megatron
    from nemo.collections.nlp.modules.common.megatron import build_model, clip_grads, utils

    build_model.set_defaults_if_not_set_tensor_model_parallel_attributes = (
        tensor_parallel.layers.set_defaults_if_not_set_tensor_model_parallel_attributes
    )
    clip_grads.multi_tensor_applier = megatron.multi_tensor_applier
    clip_grads.amp_C = types.SimpleNamespace(
        multi_tensor_l2norm=megatron.l2_norm_impl, multi_tensor_scale=megatron.multi_tensor_scale_impl
    )
    utils.listify_model = lambda model: model if isinstance(model, list) else [model]
    utils.FusedLayerNorm = torch.nn.LayerNorm
    utils.FastLayerNorm, utils.MixedFusedRMSNorm = (type(name, (), {}) for name in ("FastLayerNorm", "FusedRMSNorm"))


def _complete_models() -> None:
    from megatron.core import tensor_parallel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from nemo.collections.nlp.models import nlp_model
    from nemo.collections.nlp.models.language_modeling import megatron_gpt_model
    from nemo.collections.nlp.modules.common.megatron import megatron_init

    nlp_model.get_megatron_pretrained_bert_models = lambda: []  # looks for encoders, which need Transformer Engine
    megatron_gpt_model.get_specs = lambda *args, **kwargs: get_gpt_layer_local_spec()  # else builds TE's spec as well
    set_seed = megatron_init._set_random_seed

    def on_cpu_too(seed: int) -> None:
        set_seed(seed)  # leaves out the model-parallel generators where there is no CUDA device
        tensor_parallel.model_parallel_cuda_manual_seed(seed)

    megatron_init._set_random_seed = on_cpu_too


def _complete_adapters() -> None:
    """NeMo's adapters of Megatron modules ask Transformer Engine for one name, and do without it."""
    from nemo.collections.nlp.parts import peft_config
    from nemo.collections.nlp.parts.mixins import nlp_adapter_mixins

    name = "megatron.core.extensions.transformer_engine"
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].SplitAlongDim = None
    try:
        from nemo.collections.nlp.modules.common.megatron.adapters import mcore_mixins
    finally:
        del sys.modules[name]  # Megatron itself must find that it is absent
    nlp_adapter_mixins.swap_mcore_mixin = mcore_mixins.swap_mcore_mixin
    for mixin in [key for key, value in vars(peft_config).items() if key.startswith("MCore") and value is None]:
        setattr(peft_config, mixin, getattr(mcore_mixins, mixin))
    peft_config.HAVE_MEGATRON_CORE = True


class _NeverCalled(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules whose attributes are classes that cannot be built."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _NEVER_CALLED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _absent_class
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


class _AbsentMeta(type):
    def __getattr__(cls, name: str) -> type:
        return _absent_class(name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{cls.__name__} belongs to a package that these tests do without")


def _absent_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _AbsentMeta(name, (), {})
