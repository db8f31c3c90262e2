"""``model_config.yaml`` of a ``.nemo`` ↔ :class:`GPTArchitecture`. Defaults are ``MegatronGPTModel``'s."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.model_values import check_heads, check_values
from nemo_rpo.errors import CheckpointError, ConfigError, first_line, missing_extra
from nemo_rpo.megatron.checkpoint.nemo.archive import CONFIG_FILE, NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.open import open_weights

_TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
_ACTIVATIONS = {"gelu": "gelu", "swiglu": "swiglu", "fast-swiglu": "swiglu"}
_NORMS = {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}
_POSITIONS = ("rope", "learned_absolute")
_SPECS = ("", "megatron_gpt", "te_gpt", "megatron_gpt_full_te_layer_autocast")
_WHOLE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "encoder_seq_length",
    "max_position_embeddings",
)
_POSITIVE = ("layernorm_epsilon", "rotary_base", "rotary_percentage", "init_method_std")
_FLAGS = (
    "bias",
    "qkv_bias",
    "qk_layernorm",
    "scale_positional_embedding",
    "share_embeddings_and_output_weights",
)
_LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # what NeMo's scale_positional_embedding stands for
# Key: NeMo's default, the values that the engine computes, and what to do about others.
_ONLY: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "mcore_gpt": (False, (True,), "convert it with NeMo's scripts/checkpoint_converters/convert_gpt_nemo_to_mcore.py"),
    "num_moe_experts": (None, (None,), "a mixture of experts has to be a Hugging Face folder"),
    "peft.peft_scheme": (None, (None, "none"), "merge the adapter into its base model with NeMo first"),
    "name": ("", _SPECS, f"its layers are of another kind than those of {', '.join(filter(None, _SPECS))}"),
    "normalization": ("layernorm", (*_NORMS, "LayerNorm", "RMSNorm"), "there is layernorm and rmsnorm"),
    "layernorm_zero_centered_gamma": (False, (False,), "norms multiply by their weight itself"),
    "activation": ("gelu", tuple(_ACTIVATIONS), f"there is {', '.join(_ACTIVATIONS)}"),
    "openai_gelu": (False, (False,), "gelu is the exact one"),
    "position_embedding_type": ("learned_absolute", _POSITIONS, f"there is {', '.join(_POSITIONS)}"),
    "rotary_interleaved": (False, (False,), "rotary pairs are the two halves of a head"),
    "seq_len_interpolation_factor": (None, (None, 1, 1.0), "positions are not interpolated"),
    "apply_embedding_scaling": (False, (False,), "embeddings are not scaled"),
    "transformer_block_type": ("pre_ln", ("pre_ln",), "blocks are pre-norm"),
    "window_size": (None, (None,), "attention is causal over the whole sequence"),
    "mcore_customization_config": ({}, ({}, None), "such settings are not known here"),
    "drop_layers": (None, (None, []), "all layers are trained"),
}


def read_nemo_config(path: str | Path) -> dict[str, Any]:
    """``model_config.yaml`` of the ``.nemo`` at ``path``, interpolations resolved.

    Raises :class:`CheckpointError` if it is missing or cannot be read.
    """
    with NemoArchive(path) as archive:
        return _config_in(archive)


def _config_in(archive: NemoArchive) -> dict[str, Any]:
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as exc:
        raise missing_extra("omegaconf", "mcore") from exc
    from nemo_rpo.config.merging.tree import register_resolvers

    text = archive.read(CONFIG_FILE)
    register_resolvers()
    try:
        config = OmegaConf.to_container(OmegaConf.create(text.decode()), resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, RecursionError) as exc:  # UnicodeDecodeError among them
        raise CheckpointError(f"{archive.path}: {CONFIG_FILE} cannot be read: {first_line(exc)}") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{archive.path}: {CONFIG_FILE} holds a {type(config).__name__}, not settings")
    model = config.get("model", config)
    if not isinstance(model, dict):
        raise CheckpointError(f"{archive.path}: {CONFIG_FILE} holds a {type(model).__name__} as model, not settings")
    return model


def architecture_from_nemo(path: str | Path) -> GPTArchitecture:
    """The architecture of the GPT in the ``.nemo`` at ``path``.

    ``vocab_size`` counts the rows of its embeddings: NeMo does not mask those that it pads a vocabulary with, so that
    they are part of what its log-probs are relative to.

    Raises :class:`CheckpointError` if it is damaged or lacks a size, and :class:`ConfigError`, naming the setting, for
    a model that the engine has no layers for.
    """
    with NemoArchive(path) as archive:
        config = _config_in(archive)
        where = f"{archive.path}: {CONFIG_FILE}"
        check_supported(config, where)
        vocabulary = open_weights(archive, gated=_is_gated(config)).vocabulary
    for name in ("num_layers", "hidden_size", "num_attention_heads", "encoder_seq_length"):
        if config.get(name) is None:
            raise CheckpointError(f"{where} has no {name}")
    check_values(config, where, _WHOLE, _POSITIVE, _FLAGS)
    check_heads(config["num_attention_heads"], config.get("num_query_groups"), where)
    return _architecture(config, vocabulary)


def check_supported(config: Mapping[str, Any], where: str) -> None:
    """Raises :class:`ConfigError` for the first setting that the engine has no layers for."""
    for key, (default, supported, advice) in _ONLY.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part, default) if isinstance(value, Mapping) else default
        if value not in supported:
            raise ConfigError(f"{where} has {key}={value}, which is not supported: {advice}")


def _is_gated(config: Mapping[str, Any]) -> bool:
    return str(config.get("activation", "gelu")).endswith("glu")


def _architecture(config: Mapping[str, Any], vocabulary: int) -> GPTArchitecture:
    get, heads, hidden = config.get, config["num_attention_heads"], config["hidden_size"]
    positions, length = get("position_embedding_type", "learned_absolute"), config["encoder_seq_length"]
    if positions == "rope":  # learned ones are a table of encoder_seq_length rows
        length = max(length, get("max_position_embeddings") or 0)
    return GPTArchitecture(
        num_layers=config["num_layers"],
        hidden_size=hidden,
        ffn_hidden_size=get("ffn_hidden_size") or 4 * hidden,
        num_attention_heads=heads,
        num_query_groups=get("num_query_groups") or heads,
        kv_channels=get("kv_channels") or hidden // heads,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        normalization=_NORMS[get("normalization", "layernorm").lower()],
        layernorm_epsilon=get("layernorm_epsilon", 1e-5),
        activation=_ACTIVATIONS[get("activation", "gelu")],
        bias=get("bias", True),
        qkv_bias=get("qkv_bias", False),
        qk_layernorm=get("qk_layernorm", False),
        position_embedding_type=positions,
        rotary_base=float(get("rotary_base", 10000)),
        rotary_percentage=get("rotary_percentage", 1.0),
        rope_scaling=_LLAMA3_ROPE if get("scale_positional_embedding", False) else {},
        share_embeddings_and_output_weights=get("share_embeddings_and_output_weights", True),
        init_method_std=get("init_method_std", 0.02),
    )


def exported_config(
    architecture: GPTArchitecture, source: Mapping[str, Any] | None, tokenizer: Mapping[str, Any], precision: str
) -> dict[str, Any]:
    """The ``model_config.yaml`` of an export: all of ``source`` where there is one, else one made of ``architecture``.

    Raises :class:`ConfigError` if ``source`` describes another model, or NeMo has no setting for the architecture.
    """
    if source is not None:
        architecture.check_source(_architecture(source, architecture.vocab_size), CONFIG_FILE, ".nemo")
        return dict(source)
    return config_from_architecture(architecture, tokenizer, precision)


def config_from_architecture(a: GPTArchitecture, tokenizer: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """A ``model_config.yaml`` for a model that came from elsewhere, with its settings of the tokenizer.

    Raises :class:`ConfigError` for a rotary scaling that NeMo has no setting for.
    """
    if a.rope_scaling and a.rope_scaling != _LLAMA3_ROPE:
        raise ConfigError(f"rope_scaling={a.rope_scaling} cannot be exported as .nemo: NeMo 2.1 knows {_LLAMA3_ROPE}")
    return {
        "target": _TARGET,
        "mcore_gpt": True,
        "precision": "bf16" if precision == "bf16" else 32,
        "megatron_amp_O2": precision == "bf16",
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "encoder_seq_length": a.max_position_embeddings,
        "max_position_embeddings": a.max_position_embeddings,
        "num_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "ffn_hidden_size": a.ffn_hidden_size,
        "num_attention_heads": a.num_attention_heads,
        "num_query_groups": a.num_query_groups,
        "kv_channels": a.kv_channels,
        "normalization": a.normalization,
        "layernorm_epsilon": a.layernorm_epsilon,
        "activation": "fast-swiglu" if a.activation == "swiglu" else a.activation,
        "bias": a.bias,
        "qkv_bias": a.qkv_bias,
        "qk_layernorm": a.qk_layernorm,
        "position_embedding_type": a.position_embedding_type,
        "rotary_base": a.rotary_base,
        "rotary_percentage": a.rotary_percentage,
        "scale_positional_embedding": bool(a.rope_scaling),
        "share_embeddings_and_output_weights": a.share_embeddings_and_output_weights,
        "init_method_std": a.init_method_std,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "override_vocab_size": a.vocab_size,  # else NeMo pads the tokenizer's own count, differently at every TP
        "tokenizer": {"use_fast": True, **tokenizer},
        "data": {"data_prefix": None},
        "optim": {"name": "distributed_fused_adam", "lr": 1e-6},
    }
