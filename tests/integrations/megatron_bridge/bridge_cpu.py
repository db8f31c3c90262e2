"""Megatron-Bridge 0.6.2 on a CPU, over gloo: what stands in its way beyond :mod:`nemo_rpo.megatron.cpu`.

It declares Python 3.12 and GPUs with Transformer Engine; none of what is tested here needs them. :func:`install`
gives it, on top of Megatron-Core on a CPU, the few names that it asks for at import, and turns off what only a GPU can
do. The stand-ins are taken away again after the import, so that a later use of what is not there fails as it should.
"""

from __future__ import annotations

import collections
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
import typing
import warnings
from typing import Any

# Modules that look for Transformer Engine at import: they have to look before there is a stand-in.
_BEFORE_THE_STAND_INS = (
    "megatron.core.distributed",
    "megatron.core.extensions.transformer_engine",
    "megatron.core.full_cuda_graph",
    "megatron.core.fusions.fused_layer_norm",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.hybrid.hybrid_layer_specs",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.post_training.modelopt.gpt.model_specs",
    "megatron.core.ssm.mamba_layer",
    "megatron.core.transformer.cuda_graphs",
    "megatron.core.transformer.torch_norm",
    "modelopt.torch.distill",
    "modelopt.torch.opt.plugins",
)


class _AnyName(type):
    """A class of which every attribute is another; types are written with it (``A | None``), nothing is called."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})

    def __or__(cls, other: Any) -> Any:
        return object

    __ror__ = __or__


def _stand_in(name: str, *classes: str, **values: Any) -> str:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__, module.__version__ = [], "0.0.0"
    vars(module).update({of: _AnyName(of, (), {}) for of in classes}, **values)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)
    return name


def _stand_ins() -> list[str]:
    from megatron.core.optimizer.clip_grads import l2_norm_impl, multi_tensor_applier  # Megatron-Core's own, in torch

    norms = {"multi_tensor_applier": multi_tensor_applier, "multi_tensor_l2norm": l2_norm_impl}
    energon = "Batch DefaultTaskEncoder Sample WorkerConfig get_savable_loader get_train_dataset get_val_datasets"
    _stand_in("megatron.energon", *energon.split())
    return [
        _stand_in("transformer_engine"),
        _stand_in("transformer_engine.pytorch", "GroupedLinear", "Linear", "TransformerLayer", "ops"),
        _stand_in("transformer_engine.pytorch.optimizers", **norms),
        _stand_in("nvidia_resiliency_ext"),
        _stand_in("nvidia_resiliency_ext.inprocess", "CallWrapper"),
    ]


def _patch_bridge() -> None:
    import megatron.bridge.training.initialize as initialize
    import megatron.bridge.training.setup as setup
    from megatron.core import tensor_parallel

    setup.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)
    initialize.compile_helpers = lambda: None  # runs `make` in a folder that the wheel does not bring
    seed_torch = initialize._set_random_seed

    @functools.wraps(seed_torch)
    def seed_all(seed: int, *args: Any, pg_collection: Any, **kwargs: Any) -> None:
        """Bridge's, which leaves the model-parallel random state unseeded where it counts no GPU."""
        seed_torch(seed, *args, pg_collection=pg_collection, **kwargs)
        ranks = (pg_collection.tp.rank(), pg_collection.ep.rank(), pg_collection.expt_tp.rank())
        tensor_parallel.model_parallel_cuda_manual_seed(seed, tp_rank=ranks[0], ep_rank=ranks[1], etp_rank=ranks[2])

    initialize._set_random_seed = seed_all


@functools.cache
def install() -> None:
    """Makes ``import megatron.bridge`` and its training loop work on this process's CPU; before anything imports it."""
    from nemo_rpo.megatron import cpu

    cpu.install()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    if not hasattr(typing, "override"):  # Python 3.11
        import typing_extensions

        typing.override = typing_extensions.override
    import torch

    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *args, **kwargs: 0)
    torch.cuda.memory_stats = lambda *args, **kwargs: collections.defaultdict(int)
    for name in _BEFORE_THE_STAND_INS:
        importlib.import_module(name)
    from nemo_rpo.megatron.optim import adam

    adam.install_where_needed(on_gpu=False)
    stand_ins = _stand_ins()
    for name in ("", ".training.setup", ".training.pretrain", ".training.finetune"):
        importlib.import_module(f"megatron.bridge{name}")
    for name in stand_ins:
        del sys.modules[name]
    _patch_bridge()
