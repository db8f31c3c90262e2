"""Which layers of a model chunk get an adapter, and what of it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import ALL_MATRICES, EXPERTS, SETTING, Parts, Targets
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.compat.experts import expert_in, in_shared_expert
from nemo_rpo.megatron.compat.linear_layers import is_column_parallel, weights_of
from nemo_rpo.megatron.network.lora.adapter import ADAPTER, LowRankAdapter, Rows, put_beside
from nemo_rpo.megatron.network.lora.expert_adapter import ExpertAdapter, GroupedAdapters, put_beside_experts
from nemo_rpo.megatron.network.reward_head import REWARD_HEAD


def attach(chunk: torch.nn.Module, config: TransformerConfig, peft: PeftConfig, targets: Targets, seed: int) -> None:
    """Puts an adapter beside each of ``targets`` in ``chunk``, a bare GPTModel, and freezes all else but a reward head.

    An adapter starts from random numbers of its own, which depend on ``seed``, its layer's number and name, and of
    experts on the expert's number in the model, alone. Issues no collective.

    Raises:
        ConfigError: a layer that is none of Megatron's parallel ones, or a pipeline stage without any target.
    """
    chunk.requires_grad_(False)
    found = False
    for layer in chunk.decoder.layers:
        for path, module in list(layer.named_modules()):
            (of_experts, first), name = expert_in(path), path.rpartition(".")[2]
            name = f"{EXPERTS}.{name}" if of_experts else name
            if name not in targets or in_shared_expert(path):
                continue
            column = is_column_parallel(module)
            weights = [] if column is None else weights_of(module)
            if not weights:
                raise ConfigError(
                    f"{SETTING}: {name} is a {type(module).__name__}, which takes no adapter: leave it out"
                )
            make = partial(_adapter, name=name, config=config, peft=peft, parts=targets[name], column=column)
            start = f"{seed}/{layer.layer_number}"
            if of_experts:
                first += parallel_state.get_expert_model_parallel_rank() * _experts_here(config)
                named = enumerate(weights, first)
                made = [make(ExpertAdapter, of, random_of=f"{start}/{name}/{number}") for number, of in named]
                put_beside_experts(module, made)
            else:
                put_beside(module, make(LowRankAdapter, weights[0], random_of=f"{start}/{path}"))
            found = True
    if not found:
        raise ConfigError(
            f"{SETTING}: a pipeline stage has none of {', '.join(targets)}: name a layer of the attention too"
        )
    if hasattr(chunk, REWARD_HEAD):
        getattr(chunk, REWARD_HEAD).requires_grad_(True)
    if config.recompute_granularity == "full" and chunk.pre_process:
        chunk.embedding.register_forward_hook(_with_gradient)


def _experts_here(config: TransformerConfig) -> int:
    return config.num_moe_experts // parallel_state.get_expert_model_parallel_world_size()


def _adapter(
    kind: type[LowRankAdapter],
    weight: Tensor,
    random_of: str,
    name: str,
    config: TransformerConfig,
    peft: PeftConfig,
    parts: Parts,
    column: bool,
) -> LowRankAdapter:
    """One beside the matrix ``weight`` of the layer that targets call ``name``."""
    rows, tuning = _rows(name, weight.shape[0], config, parts), peft.lora_tuning
    return kind(
        weight,
        rows,
        len(parts),
        rank=tuning.adapter_dim,
        scale=peft.scale,
        dropout=tuning.adapter_dropout,
        column=column,
        sequence_parallel=config.sequence_parallel,
        stacks_two=name.endswith("linear_fc1") and config.gated_linear_unit and rows.adapted == weight.shape[0],
        method=tuning.column_init_method,
        random_of=random_of,
    )


def _rows(name: str, outputs: int, config: TransformerConfig, parts: Parts) -> Rows:
    """How the layer's ``outputs`` rows on this rank belong to its matrices."""
    matrices = ALL_MATRICES[name]
    if parts == (matrices,):  # one A for all of it
        return Rows(1, ((outputs, 0),))
    if name == "linear_qkv":
        groups = config.num_query_groups // parallel_state.get_tensor_model_parallel_world_size()
        head = config.kv_channels
        sizes = (config.num_attention_heads // config.num_query_groups * head, head, head)
    else:
        groups, sizes = 1, (outputs // 2,) * 2
    part_of = {matrix: index for index, part in enumerate(parts) for matrix in part}
    return Rows(groups, tuple((size, part_of.get(of)) for size, of in zip(sizes, matrices, strict=True)))


def _with_gradient(embedding: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
    """Recomputation keeps no gradients of a layer whose input wants none, and below adapters nothing is trained."""
    return output.requires_grad_() if torch.is_grad_enabled() and output.is_leaf else output


def adapters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[Tensor, LowRankAdapter]]:
    """Every (matrix, its adapter) of the chunks, wrapped or not."""
    for chunk in chunks:
        for module in chunk.modules():
            adapter = getattr(module, ADAPTER, None)
            if isinstance(adapter, LowRankAdapter | GroupedAdapters):
                beside = [adapter] if isinstance(adapter, LowRankAdapter) else adapter
                yield from zip(weights_of(module), beside, strict=True)


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
