"""The ``.nemo`` files that go between NeMo's class and the engine in ``test_nemo_files.py``: both sides import this."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LLAMA = {"normalization": "rmsnorm", "activation": "fast-swiglu", "bias": False, "position_embedding_type": "rope"}
GPT = {"normalization": "layernorm", "activation": "gelu", "bias": True, "position_embedding_type": "learned_absolute"}
# How the file is stored, and what of the world's architecture is otherwise. NeMo saves them under TP=2.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("torch_dist", {**LLAMA, "share_embeddings_and_output_weights": True}),
    "llama_zarr": ("zarr", {**LLAMA, "share_embeddings_and_output_weights": False, "qkv_bias": True}),
    "llama_per_rank": ("per_rank", {**LLAMA, "share_embeddings_and_output_weights": False, "rotary_base": 5e4}),
    "gpt": ("torch_dist", {**GPT, "share_embeddings_and_output_weights": True}),
    "gpt_per_rank": ("per_rank", {**GPT, "position_embedding_type": "rope", "rotary_percentage": 0.5}),
}


def tokens(vocabulary: int) -> Tensor:
    """``[3, 20]`` token ids."""
    return torch.randint(vocabulary, (3, 20), generator=torch.Generator().manual_seed(3))


def change(name: str, weight: Tensor) -> Tensor:
    """A weight's value for another: large enough to be seen, the same under every name of a tensor's parts."""
    return weight * (1.0 + 0.05 * (zlib.crc32(name.rpartition(".")[2].encode()) % 2 * 2 - 1))


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """``[b, s − 1]`` of the tokens that follow, from ``[b, s, V]``."""
    return logits.float().log_softmax(-1)[:, :-1].gather(2, token_ids[:, 1:, None]).squeeze(2)


def expected(folder: Path, name: str) -> Path:
    return folder / f"{name}.logprobs.pt"
