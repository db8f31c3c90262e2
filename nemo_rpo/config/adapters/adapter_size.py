"""How many weights adapters have, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import MLP, resolve_targets, targets_in

if TYPE_CHECKING:
    from nemo_rpo.config.architecture import GPTArchitecture


def layer_adapter_weights(model: GPTArchitecture, peft: PeftConfig, layer: int, tensor: int = 1) -> float:
    """Of ``layer``, from 0, on one of ``tensor`` ranks: A of column-parallel layers and B of row-parallel ones are on
    each as a whole (:mod:`nemo_rpo.megatron.network.lora.adapter`). 0 where all weights are trained.

    >>> from nemo_rpo.config.architecture import GPTArchitecture
    >>> llama = GPTArchitecture(32, 4096, 14336, 32, 8, 128, 128256, 8192)
    >>> layer_adapter_weights(llama, PeftConfig("lora"), 0)
    2228224.0
    """
    return sum(inward + outward for inward, outward in _sizes(model, peft, layer, tensor)) if peft.lora else 0.0


def adapter_weights(model: GPTArchitecture, peft: PeftConfig) -> float:
    """Of all layers."""
    return sum(layer_adapter_weights(model, peft, layer) for layer in range(model.num_layers))


def layer_adapter_activations(peft: PeftConfig, has_experts: bool) -> int:
    """Numbers between A and B that a token leaves in a layer, P r of each adapter; 0 where all weights are trained."""
    if not peft.lora:
        return 0
    targets = resolve_targets(peft.lora_tuning.target_modules)
    parts = (len(of) for layer, of in targets.items() if not (has_experts and layer in MLP))
    return peft.lora_tuning.adapter_dim * sum(parts)


def _sizes(model: GPTArchitecture, peft: PeftConfig, layer: int, tensor: int) -> list[tuple[float, float]]:
    """Numbers of A and of B, of each adapter of a layer."""
    heads, groups = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    rows = {"q_proj": heads, "k_proj": groups, "v_proj": groups, "o_proj": hidden, "down_proj": hidden}
    rows |= {"gate_proj": ffn, "up_proj": ffn if model.activation == "swiglu" else 0}
    found, rank = [], peft.lora_tuning.adapter_dim
    for name, parts in targets_in(model, peft.lora_tuning.target_modules).items():
        if name in MLP and model.has_experts(layer):
            continue
        outputs = rank * sum(rows[matrix] for part in parts for matrix in part)
        if name in ("linear_qkv", "linear_fc1"):
            found.append((len(parts) * rank * hidden, outputs / tensor))
        else:
            found.append((rank * (heads if name == "linear_proj" else ffn) / tensor, outputs))
    return found
