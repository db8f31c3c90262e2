"""The published sizes of the models that the recipes are for (their ``config.json``), and the weights they have."""

from __future__ import annotations

from pathlib import Path

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.arithmetic.flops import layers_weights
from nemo_rpo.config.experts.expert_shape import Experts
from nemo_rpo.errors import ConfigError

MODELS = {
    "llama3-8b": GPTArchitecture(32, 4096, 14336, 32, 8, 128, 128256, 8192, rotary_base=5e5),
    "llama3-70b": GPTArchitecture(80, 8192, 28672, 64, 8, 128, 128256, 8192, rotary_base=5e5),
    "mistral-7b": GPTArchitecture(32, 4096, 14336, 32, 8, 128, 32000, 32768, rotary_base=1e6),
    "qwen3-8b": GPTArchitecture(36, 4096, 12288, 32, 8, 128, 151936, 40960, qk_layernorm=True, rotary_base=1e6),
    "qwen3-32b": GPTArchitecture(64, 5120, 25600, 64, 8, 128, 151936, 40960, qk_layernorm=True, rotary_base=1e6),
    "qwen3-30b-a3b": GPTArchitecture(
        48, 2048, 6144, 32, 4, 128, 151936, 40960, qk_layernorm=True, rotary_base=1e6, experts=Experts(128, 768, 8)
    ),
    "mixtral-8x7b": GPTArchitecture(
        32, 4096, 14336, 32, 8, 128, 32000, 32768, rotary_base=1e6, experts=Experts(8, 14336, 2)
    ),
}


def architecture_named(model: str) -> GPTArchitecture:
    """That of a name in :data:`MODELS`, or of a Hugging Face folder.

    Raises:
        ConfigError, CheckpointError: neither, or a model that this package does not train.
    """
    if model in MODELS:
        return MODELS[model]
    if not Path(model).is_dir():
        raise ConfigError(f"--model {model} is neither a directory nor one of {', '.join(MODELS)}")
    from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf

    return architecture_from_hf(model)


def layer_norm_weights(model: GPTArchitecture) -> int:
    """Weights of one layer's norms, which every tensor-parallel rank has whole."""
    return 2 * model.hidden_size + (2 * model.kv_channels if model.qk_layernorm else 0)


def total_weights(model: GPTArchitecture) -> int:
    """All weights of the model, N; no padding of the vocabulary, and no bias of a router, which is not trained."""
    tables = 1 if model.share_embeddings_and_output_weights else 2
    layers = layers_weights(model, active=False) + model.num_layers * layer_norm_weights(model)
    return layers + tables * model.vocab_size * model.hidden_size + model.hidden_size
