"""Tiny random models of every supported family, made and run with transformers: what the engine has to reproduce."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
SCALED_ROPE = dict(rope_theta=5e5, rope_scaling=LLAMA3_ROPE, max_position_embeddings=65536)


@dataclass(frozen=True)
class Case:
    """``files``: one, or many small ones. A ``vocabulary_multiple`` of 128 leaves rank 1 of TP=2 with padding only."""

    family: str
    config: dict[str, Any] = field(default_factory=dict)
    files: str = "one"
    dtype: torch.dtype = torch.float32
    precision: str = "32"
    vocabulary_multiple: int = 16

    @property
    def has_experts(self) -> bool:
        return self.family in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Glm4Moe")


QWEN_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1)
GLM_EXPERTS = dict(
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    n_shared_experts=2,
    first_k_dense_replace=1,
    routed_scaling_factor=1.7,
    norm_topk_prob=True,
    head_dim=8,
    num_nextn_predict_layers=0,  # layers that save_pretrained does not write
)
CASES = {
    "llama": Case("Llama", vocabulary_multiple=128),
    "llama_tied_scaled_rope": Case("Llama", SCALED_ROPE | dict(tie_word_embeddings=True), "many"),
    "llama_biases": Case("Llama", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=4)),
    "mistral": Case("Mistral", dict(head_dim=16, sliding_window=None, rope_theta=1e6), "many"),
    "qwen2": Case("Qwen2"),
    "qwen2_tied": Case("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": Case("Qwen3", dict(head_dim=16)),
    "qwen3_tied": Case("Qwen3", dict(head_dim=16, tie_word_embeddings=True), "many", vocabulary_multiple=128),
    "llama_bf16_into_fp32": Case("Llama", dtype=torch.bfloat16),
    "qwen3_bf16": Case("Qwen3", dict(tie_word_embeddings=True, head_dim=16), "many", torch.bfloat16, precision="bf16"),
}
CASES |= {
    "mixtral": Case("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=None), "many"),
    "qwen2_moe": Case("Qwen2Moe", QWEN_EXPERTS | dict(shared_expert_intermediate_size=40, norm_topk_prob=False)),
    "qwen3_moe": Case("Qwen3Moe", QWEN_EXPERTS | dict(head_dim=16, norm_topk_prob=True), vocabulary_multiple=128),
    "qwen3_moe_some_dense_tied": Case(
        "Qwen3Moe",
        QWEN_EXPERTS | dict(head_dim=16, norm_topk_prob=False, mlp_only_layers=[2], tie_word_embeddings=True),
    ),
    "glm4_moe": Case("Glm4Moe", GLM_EXPERTS | dict(n_group=1, topk_group=1, attention_bias=True, use_qk_norm=True)),
    "glm4_moe_groups": Case("Glm4Moe", GLM_EXPERTS | dict(n_group=2, topk_group=1, attention_bias=False), "many"),
}
SMALL_FILES = "20KB"

# What is generated from them: prompts of several lengths, one too long for the batch of the others, and one that comes
# twice with two seeds.
PROMPTS = [[7], [3, 9, 4], [3, 9, 4], [1, 2, 3, 4, 5, 6, 7, 8], [11, 12], [(5 * i) % 50 for i in range(45)]]
SEEDS = [101, 102, 103, 104, 105, 106]
NEW_TOKENS, STOP_IDS = 12, [13, 17]
WRITERS = ["llama", "llama_tied_scaled_rope", "llama_biases", "qwen3_tied", "qwen3_bf16"]


def make(name: str, folder: Path) -> None:
    """Saves the model ``name`` in ``folder``, random in every weight, and beside it what transformers computes."""
    import transformers

    case, seed = CASES[name], list(CASES).index(name)
    torch.manual_seed(seed)
    config = getattr(transformers, f"{case.family}Config")(**SIZES | case.config)
    model = getattr(transformers, f"{case.family}ForCausalLM")(config)
    token_ids = torch.randint(0, SIZES["vocab_size"], (4, 96))
    with torch.no_grad():
        for parameter in model.parameters():  # fresh norms are ones and fresh biases zeros, which would hide a mix-up
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
        for buffer_name, buffer in model.named_buffers():  # of a router: with zeros it would choose as without
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer), alpha=0.3)
        model.to(case.dtype).save_pretrained(folder, max_shard_size=SMALL_FILES if case.files == "many" else "1GB")
        saved = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        logits = saved(token_ids).logits
    save_file({"token_ids": token_ids, "logits": logits.contiguous()}, folder.with_suffix(".expected"))
