"""Tiny mixtures of experts that speak the language of :mod:`tiny_world`, beside its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_world
import torch
from hf_models import GLM_EXPERTS, QWEN_EXPERTS

SIZES = dict(
    vocab_size=len(tiny_world.WORDS),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
# GLM's has all that others have: a dense first layer, groups, a bias of the router, a shared expert. (hf_models rotates
# half heads and has biases too.)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe": ("Glm4Moe", GLM_EXPERTS | dict(n_group=2, topk_group=1, attention_bias=False, use_qk_norm=True)),
    "qwen2_moe": ("Qwen2Moe", QWEN_EXPERTS | dict(shared_expert_intermediate_size=40, norm_topk_prob=False)),
    # A fake GPU has no values to route by, and needs none where there is nothing to choose.
    "one_expert": (
        "Qwen2Moe",
        QWEN_EXPERTS
        | dict(num_experts=1, num_experts_per_tok=1, shared_expert_intermediate_size=40, norm_topk_prob=False),
    ),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
}


def make(folder: Path) -> Path:
    """``train.jsonl`` of :mod:`tiny_world`, ``validation.jsonl`` (21 pairs) and a folder a model."""
    import transformers

    for seed, (name, (family, config)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        tiny_world.write_model(folder / name)  # for the tokenizer
        (folder / name / "model.safetensors").unlink()
        model = getattr(transformers, f"{family}ForCausalLM")(
            getattr(transformers, f"{family}Config")(**SIZES | config)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.12)
            for buffer_name, buffer in model.named_buffers():
                if buffer_name.endswith("e_score_correction_bias"):
                    buffer.add_(torch.randn_like(buffer), alpha=0.3)
        model.float().save_pretrained(folder / name)
    tiny_world.write_rows(folder / "train.jsonl", tiny_world.rows(160, seed=2))
    tiny_world.write_rows(folder / "validation.jsonl", tiny_world.rows(21, seed=4))
    return folder
