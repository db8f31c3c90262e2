"""``config.json`` of a Hugging Face folder ↔ :class:`GPTArchitecture`. No weights are read and no Megatron is needed.

Key names are those of ``transformers``' ``LlamaConfig``, ``MistralConfig``, ``Qwen2Config`` and ``Qwen3Config``; what
families with experts add is in :mod:`~nemo_rpo.megatron.checkpoint.huggingface.expert_config`. The
rotary settings stand in ``rope_theta``/``rope_scaling`` up to transformers 4 and in ``rope_parameters`` from
transformers 5; both are read, the former are written since both releases read them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.model_values import check_heads, check_values
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.expert_config import (
    EXPERT_CLASSES,
    config_of_experts,
    experts_from_config,
)

logger = logging.getLogger(__name__)

MODEL_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    **EXPERT_CLASSES,
}
_WINDOWED = ("mistral", "mixtral")  # their attention is windowed where sliding_window is a number
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)
_LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_WHOLE = (*_SIZES[:-1], "num_key_value_heads", "head_dim", "sliding_window")
_POSITIVE = ("rms_norm_eps", "initializer_range", "rope_theta", "partial_rotary_factor")
# Layers that predict further tokens, of GLM's checkpoints: not part of the policy, neither read nor written.
_FURTHER_TOKENS = "num_nextn_predict_layers"
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_ROTARY = ("rope_scaling", "rope_parameters")
# What a fine-tuned copy may differ in without its weights meaning something else.
_NOT_IN_THE_WEIGHTS = {"max_position_embeddings", "init_method_std"}


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of ``folder`` as a dictionary. Raises :class:`CheckpointError` if it is missing or not JSON."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give a folder saved with save_pretrained") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} cannot be read as JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a JSON {type(config).__name__}, not an object")
    return config


def architecture_from_hf(folder: str | Path) -> GPTArchitecture:
    """The architecture of the model in ``folder``.

    Raises :class:`CheckpointError` if ``config.json`` is missing, broken or lacks a size, and :class:`ConfigError` if
    it describes a model that is not supported (another ``model_type``, a quantized model, a rotary scaling other than
    ``llama3``).
    """
    return architecture_from_config(read_hf_config(folder), where=str(Path(folder) / "config.json"))


def architecture_from_config(config: Mapping[str, Any], where: str = "config.json") -> GPTArchitecture:
    """The architecture that the dictionary ``config`` describes; ``where`` names it in errors.

    Raises as :func:`architecture_from_hf` does.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_CLASSES:
        raise ConfigError(
            f"{where}: model_type {model_type!r} is not supported; supported are {', '.join(MODEL_CLASSES)}"
        )
    for name in _SIZES:
        if config.get(name) is None:
            raise CheckpointError(f"{where} has no {name}")
    _check_types(config, where)
    if config.get("quantization_config"):
        raise ConfigError(f"{where}: quantization_config is set; start from the unquantized weights")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(
            f"{where}: hidden_act {config['hidden_act']!r} is not supported; the supported models use 'silu'"
        )
    heads, qkv_bias, qk_layernorm = config["num_attention_heads"], *_attention_kind(config)
    rotary_base, rope_scaling, rotary_percentage = _rope(config, where)
    return GPTArchitecture(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        max_position_embeddings=_full_attention_length(config, where),
        layernorm_epsilon=config["rms_norm_eps"],
        bias=_bias(config, where),
        qkv_bias=qkv_bias,
        qk_layernorm=qk_layernorm,
        rotary_base=rotary_base,
        rotary_percentage=rotary_percentage,
        rope_scaling=rope_scaling,
        share_embeddings_and_output_weights=bool(config.get("tie_word_embeddings", False)),
        init_method_std=config.get("initializer_range", 0.02),
        experts=experts_from_config(config, where),
    )


def layers_left_out(folder: str | Path) -> tuple[str, ...]:
    """What the names of tensors in ``folder`` begin with that are no part of the language model: layers beyond the last
    that predict further tokens.
    """
    config = read_hf_config(folder)
    last = config["num_hidden_layers"]
    return tuple(f"model.layers.{last + further}." for further in range(config.get(_FURTHER_TOKENS) or 0))


def _attention_kind(config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether query, key and value have biases, the projection none; and whether query and key are normed."""
    family = config["model_type"]
    if family == "glm4_moe":
        return bool(config.get("attention_bias", False)), bool(config.get("use_qk_norm", False))
    return family == "qwen2" or (family == "qwen2_moe" and config.get("qkv_bias", True)), family.startswith("qwen3")


def _check_types(config: Mapping[str, Any], where: str) -> None:
    """Raises :class:`CheckpointError` for a value that no release of ``transformers`` writes."""
    if config["model_type"] == "qwen2_moe" and config.get("sliding_window") == 0:  # what transformers writes for none
        config = {**config, "sliding_window": None}
    check_values(config, where, _WHOLE, _POSITIVE, _FLAGS, _ROTARY)
    for name in _ROTARY:
        check_values(config.get(name) or {}, f"{where}: {name}", positive=(*_POSITIVE, *_LLAMA3_ROPE))
    check_heads(config["num_attention_heads"], config.get("num_key_value_heads"), where)


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, dict[str, float], float]:
    """Rotary base, Llama-3.1 frequency scaling (empty where there is none), and the share of a head that is rotated."""
    rope = {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    theta = rope["rope_theta"] or 10000.0  # the four models' common default; old Llama configurations leave it out
    kind = rope.get("rope_type", rope.get("type", "default"))
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if share != 1.0 and config["model_type"] != "glm4_moe":
        raise ConfigError(f"{where}: partial_rotary_factor is not supported; rotary embeddings must be full")
    if kind == "default":
        return float(theta), {}, share
    if kind != "llama3":
        raise ConfigError(f"{where}: rotary scaling {kind!r} is not supported; supported are default and llama3")
    for name in _LLAMA3_ROPE:
        if name not in rope:
            raise CheckpointError(f"{where}: rotary scaling 'llama3' has no {name}")
    return float(theta), {name: rope[name] for name in _LLAMA3_ROPE}, share


def _bias(config: Mapping[str, Any], where: str) -> bool:
    """True if every linear layer has a bias; besides that, Megatron-Core only knows biases of query, key and value.

    Llama and Qwen3 let ``attention_bias`` decide, which gives ``o_proj`` one too; Mistral and Qwen2 do not read it.
    """
    if config["model_type"] == "qwen3_moe" and config.get("attention_bias", False):
        raise ConfigError(f"{where}: Megatron-Core cannot build attention_bias=True with experts that have none")
    if config["model_type"] not in ("llama", "qwen3"):
        return False
    attention = bool(config.get("attention_bias", False))
    mlp = config["model_type"] == "llama" and bool(config.get("mlp_bias", False))
    if attention != mlp:
        raise ConfigError(f"{where}: Megatron-Core cannot build attention_bias={attention} with mlp_bias={mlp}")
    return attention


def _full_attention_length(config: Mapping[str, Any], where: str) -> int:
    """``max_position_embeddings``, cut to the sliding window where the model has an active one.

    The engine's attention is full; up to the window's length that is the same.
    """
    longest, window = config["max_position_embeddings"], config.get("sliding_window")
    family = config["model_type"]
    active = family in _WINDOWED or (family.startswith("qwen") and config.get("use_sliding_window", False))
    if not active or window is None or window >= longest:
        return longest
    logger.warning(
        "%s: attention is full here, so sequences are limited to the model's sliding_window of %d tokens (not %d)",
        where,
        window,
        longest,
    )
    return window


def config_from_architecture(architecture: GPTArchitecture) -> dict[str, Any]:
    """A ``config.json`` for a model that has none: Llama, or Qwen2 (query-key-value biases), or Qwen3 (query-key
    norms), or the family whose experts it has.

    Special token ids are left ``null``; they belong to the tokenizer. Raises :class:`ConfigError` if none of the
    supported models has this architecture.
    """
    a = architecture
    of_experts = {} if a.experts is None else config_of_experts(a)
    model_type = "qwen3" if a.qk_layernorm else "qwen2" if a.qkv_bias and not a.bias else "llama"
    glm = of_experts.get("model_type") == "glm4_moe"
    unlike = {
        "normalization": a.normalization != "rmsnorm",
        "activation": a.activation != "swiglu",
        "position_embedding_type": a.position_embedding_type != "rope",
        "rotary_percentage": a.rotary_percentage != 1.0 and not glm,
        "bias": a.bias and (a.qk_layernorm or bool(of_experts)),
        "qkv_bias": a.qkv_bias and a.qk_layernorm and not glm,
    }
    for name, differs in unlike.items():
        if differs:
            families = ", ".join(MODEL_CLASSES)
            raise ConfigError(
                f"model.{name}={getattr(a, name)} cannot be exported: none of {families} is built that way"
            )
    config = {
        "architectures": [MODEL_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.ffn_hidden_size,
        "num_hidden_layers": a.num_layers,
        "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_query_groups,
        "head_dim": a.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": a.max_position_embeddings,
        "initializer_range": a.init_method_std,
        "rms_norm_eps": a.layernorm_epsilon,
        "rope_theta": a.rotary_base,
        "rope_scaling": {"rope_type": "llama3", **a.rope_scaling} if a.rope_scaling else None,
        "tie_word_embeddings": a.share_embeddings_and_output_weights,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if of_experts:
        config |= of_experts
        for name, ours, theirs in a.differences(architecture_from_config(config)):
            if name not in _NOT_IN_THE_WEIGHTS:
                raise ConfigError(f"model.{name}={ours} cannot be exported: {config['model_type']} has {name}={theirs}")
        return config
    return config | ({"attention_bias": a.bias, "mlp_bias": a.bias} if model_type == "llama" else {})


def exported_config(
    architecture: GPTArchitecture, source_config: Mapping[str, Any] | None, dtype: torch.dtype
) -> dict[str, Any]:
    """The ``config.json`` of an export: all of ``source_config`` where there is one, with the dtype of the weights.

    Raises :class:`ConfigError` if ``source_config`` describes another architecture, naming the first setting that
    differs.
    """
    config = dict(source_config) if source_config is not None else config_from_architecture(architecture)
    described = architecture_from_config(config, where="the exported config.json")
    architecture.check_source(described, "config.json", "config.json", _NOT_IN_THE_WEIGHTS)
    if config.get(_FURTHER_TOKENS):
        config[_FURTHER_TOKENS] = 0
    # transformers 4 says torch_dtype and 5 says dtype; a file that has both must not contradict itself.
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]
    return config | dict.fromkeys(names, str(dtype).removeprefix("torch."))
