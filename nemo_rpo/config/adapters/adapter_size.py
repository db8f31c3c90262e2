"""How many weights adapters have, by formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import EXPERTS, MLP, Targets, resolve_targets, targets_in, targets_of_layer

if TYPE_CHECKING:
    from nemo_rpo.config.architecture import GPTArchitecture


def layer_adapter_weights(model: GPTArchitecture, peft: PeftConfig, layer: int, tensor: int = 1) -> float:
    """Of ``layer``, from 0, outside of experts, on one of ``tensor`` ranks: A of column-parallel layers and B of
    row-parallel ones are on each as a whole (:mod:`nemo_rpo.megatron.network.lora.adapter`). 0 where all weights are
    trained.

    >>> from nemo_rpo.config.architecture import GPTArchitecture
    >>> llama = GPTArchitecture(32, 4096, 14336, 32, 8, 128, 128256, 8192)
    >>> layer_adapter_weights(llama, PeftConfig("lora"), 0)
    2228224.0
    """
    return _numbers(model, peft, layer, tensor, of_experts=False)


def expert_adapter_weights(model: GPTArchitecture, peft: PeftConfig, layer: int, tensor: int = 1) -> float:
    """Of each expert of ``layer``, on one of ``tensor`` ranks that split it; 0 where experts have no adapters."""
    return _numbers(model, peft, layer, tensor, of_experts=True)


def adapter_weights(model: GPTArchitecture, peft: PeftConfig, active: bool = False) -> float:
    """Of all layers; ``active``: of experts' those alone that a token meets."""
    experts = model.experts
    count = 0 if experts is None else experts.moe_router_topk if active else experts.num_moe_experts
    return sum(
        layer_adapter_weights(model, peft, layer) + count * expert_adapter_weights(model, peft, layer)
        for layer in range(model.num_layers)
    )


def layer_adapter_activations(peft: PeftConfig, has_experts: bool) -> int:
    """Numbers between A and B that a token leaves in a layer outside of experts, P r of each adapter; 0 where all
    weights are trained.
    """
    return _between(peft, lambda name: not (_of_experts(name) or (has_experts and name in MLP)))


def expert_adapter_activations(peft: PeftConfig) -> int:
    """Those that a token leaves in each expert that it has."""
    return _between(peft, _of_experts)


def _between(peft: PeftConfig, counted: Callable[[str], bool]) -> int:
    if not peft.lora:
        return 0
    targets = resolve_targets(peft.lora_tuning.target_modules)
    return peft.lora_tuning.adapter_dim * sum(len(parts) for name, parts in targets.items() if counted(name))


def _of_experts(name: str) -> bool:
    return name.startswith(f"{EXPERTS}.")


def _numbers(model: GPTArchitecture, peft: PeftConfig, layer: int, tensor: int, of_experts: bool) -> float:
    """Numbers of A and of B, of each adapter of a layer or of an expert of it."""
    if not peft.lora:
        return 0.0
    targets = targets_of_layer(model, targets_in(model, peft.lora_tuning.target_modules), layer)
    found = {name: parts for name, parts in targets.items() if _of_experts(name) == of_experts}
    width = model.experts.moe_ffn_hidden_size if of_experts and found else model.ffn_hidden_size
    return sum(_sizes(model, peft, found, tensor, width), 0.0)


def _sizes(model: GPTArchitecture, peft: PeftConfig, targets: Targets, tensor: int, width: int) -> Iterator[float]:
    """Of each of ``targets``, whose MLP or expert is ``width`` wide."""
    heads, groups = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    hidden, rank = model.hidden_size, peft.lora_tuning.adapter_dim
    rows = {"q_proj": heads, "k_proj": groups, "v_proj": groups, "o_proj": hidden, "down_proj": hidden}
    rows |= {"gate_proj": width, "up_proj": width if model.activation == "swiglu" else 0}
    for name, parts in targets.items():
        outputs = rank * sum(rows[matrix.rpartition(".")[2]] for part in parts for matrix in part)
        if name.endswith(("linear_qkv", "linear_fc1")):
            yield len(parts) * rank * hidden + outputs / tensor
        else:
            yield rank * (heads if name == "linear_proj" else width) / tensor + outputs
