"""Which layers of a model chunk get an adapter, and what of it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import MATRICES, SETTING, Parts, Targets
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.compat.linear_layers import is_column_parallel
from nemo_rpo.megatron.network.lora.adapter import ADAPTER, LowRankAdapter, Rows, put_beside
from nemo_rpo.megatron.network.reward_head import REWARD_HEAD

EXPERTS = frozenset({"experts", "shared_experts"})  # in the path of layers that get no adapter


def attach(chunk: torch.nn.Module, config: TransformerConfig, peft: PeftConfig, targets: Targets, seed: int) -> None:
    """Puts an adapter beside each of ``targets`` outside of experts in ``chunk``, a bare GPTModel, and freezes all else
    but a reward head.

    An adapter starts from random numbers of its own, which depend on ``seed``, its layer's number and name alone.
    Issues no collective.

    Raises:
        ConfigError: a layer that is none of Megatron's parallel ones, or a pipeline stage without any target.
    """
    chunk.requires_grad_(False)
    tuning, found = peft.lora_tuning, False
    for layer in chunk.decoder.layers:
        for path, module in list(layer.named_modules()):
            *folders, name = path.split(".")
            if name not in targets or EXPERTS.intersection(folders):
                continue
            column = is_column_parallel(module)
            if column is None:
                raise ConfigError(
                    f"{SETTING}: {name} is a {type(module).__name__}, which takes no adapter: leave it out"
                )
            rows, parts = _rows(name, module, config, targets[name])
            adapter = LowRankAdapter(
                module,
                rows,
                parts,
                rank=tuning.adapter_dim,
                scale=peft.scale,
                dropout=tuning.adapter_dropout,
                column=column,
                sequence_parallel=config.sequence_parallel,
                stacks_two=name == "linear_fc1" and config.gated_linear_unit and rows.adapted == module.weight.shape[0],
                method=tuning.column_init_method,
                random_of=f"{seed}/{layer.layer_number}/{path}",
            )
            put_beside(module, adapter)
            found = True
    if not found:
        raise ConfigError(
            f"{SETTING}: a pipeline stage has none of {', '.join(targets)} outside of experts: name a layer of the "
            "attention too"
        )
    if hasattr(chunk, REWARD_HEAD):
        getattr(chunk, REWARD_HEAD).requires_grad_(True)
    if config.recompute_granularity == "full" and chunk.pre_process:
        chunk.embedding.register_forward_hook(_with_gradient)


def _rows(name: str, layer: torch.nn.Module, config: TransformerConfig, parts: Parts) -> tuple[Rows, int]:
    """How the layer's rows on this rank belong to its matrices, and the number of its parts."""
    outputs, matrices = layer.weight.shape[0], MATRICES[name]
    if parts == (matrices,):  # one A for all of it
        return Rows(1, ((outputs, 0),)), 1
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    if name == "linear_qkv":
        groups = config.num_query_groups // ranks
        head = config.kv_channels
        sizes = (config.num_attention_heads // config.num_query_groups * head, head, head)
    else:
        groups, sizes = 1, (outputs // 2,) * 2
    part_of = {matrix: index for index, part in enumerate(parts) for matrix in part}
    return Rows(groups, tuple((size, part_of.get(of)) for size, of in zip(sizes, matrices, strict=True))), len(parts)


def _with_gradient(embedding: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
    """Recomputation keeps no gradients of a layer whose input wants none, and below adapters nothing is trained."""
    return output.requires_grad_() if torch.is_grad_enabled() and output.is_leaf else output


def adapters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[torch.nn.Module, LowRankAdapter]]:
    """Every (layer, its adapter) of the chunks, wrapped or not."""
    for chunk in chunks:
        for module in chunk.modules():
            adapter = getattr(module, ADAPTER, None)
            if isinstance(adapter, LowRankAdapter):
                yield module, adapter


def has_adapters(chunks: Sequence[torch.nn.Module]) -> bool:
    """Whether adapters are trained, and the rest of the model is not."""
    return next(adapters(chunks), None) is not None


def start_afresh(chunks: Sequence[torch.nn.Module]) -> None:
    """Gives every adapter the weights that it began with."""
    for _, adapter in adapters(chunks):
        adapter.start()


def is_trained(name: str) -> bool:
    """Whether a weight of this name is trained in a model with adapters."""
    return f".{ADAPTER}." in name or name.startswith(f"{REWARD_HEAD}.")
