"""How many weights adapters have, by formula."""

from __future__ import annotations

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import resolve_targets
from nemo_rpo.config.architecture import GPTArchitecture


def layer_adapter_weights(model: GPTArchitecture, peft: PeftConfig, tensor: int = 1) -> float:
    """Of one layer on one of ``tensor`` ranks: A of column-parallel layers and B of row-parallel ones are whole on each
    (:mod:`nemo_rpo.megatron.network.lora.adapter`). 0 where all weights are trained.

    >>> llama = GPTArchitecture(32, 4096, 14336, 32, 8, 128, 128256, 8192)
    >>> layer_adapter_weights(llama, PeftConfig("lora"))
    2621440.0
    """
    return sum(sizes[0] + sizes[1] for sizes in _sizes(model, peft, tensor)) if peft.lora else 0.0


def layer_adapter_activations(model: GPTArchitecture, peft: PeftConfig) -> int:
    """Numbers between A and B that a token leaves in one layer, P r of each adapter; 0 where all weights are trained."""
    if not peft.lora:
        return 0
    targets = resolve_targets(peft.lora_tuning.target_modules)
    return peft.lora_tuning.adapter_dim * sum(map(len, targets.values()))


def _sizes(model: GPTArchitecture, peft: PeftConfig, tensor: int) -> list[tuple[float, float]]:
    """Numbers of A and of B, of each adapter of a layer."""
    heads, groups = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    rows = {"q_proj": heads, "k_proj": groups, "v_proj": groups, "o_proj": hidden, "down_proj": hidden}
    rows |= dict.fromkeys(("gate_proj", "up_proj"), ffn)
    found, rank = [], peft.lora_tuning.adapter_dim
    for layer, parts in resolve_targets(peft.lora_tuning.target_modules).items():
        outputs = rank * sum(rows[matrix] for part in parts for matrix in part)
        if layer == "linear_fc1" and model.activation != "swiglu":
            outputs = rank * ffn
        if layer in ("linear_qkv", "linear_fc1"):
            found.append((len(parts) * rank * hidden, outputs / tensor))
        else:
            found.append((rank * (heads if layer == "linear_proj" else ffn) / tensor, outputs))
    return found
