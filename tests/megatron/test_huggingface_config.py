"""``config.json`` in and out: where each setting stands, what the families differ in, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.config import (
    architecture_from_config,
    architecture_from_hf,
    config_from_architecture,
    exported_config,
)

LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SMALL = GPTArchitecture(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=30,
    max_position_embeddings=64,
)


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    base = {
        "model_type": model_type,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 30,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    return base | changes


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({}, 10000.0, {}),
        ({"rope_theta": 5e5}, 5e5, {}),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6, {}),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"} | LLAMA3}, 5e5, LLAMA3),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | LLAMA3}, 5e5, LLAMA3),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3"} | LLAMA3}, 5e5, LLAMA3),
    ],
)
def test_rotary_settings_are_read_wherever_they_stand(changes: dict[str, Any], theta: float, scaling: dict) -> None:
    found = architecture_from_config(config(**changes))
    assert (found.rotary_base, found.rope_scaling) == (theta, scaling)


def test_what_the_families_differ_in() -> None:
    families = {name: architecture_from_config(config(name)) for name in ("llama", "mistral", "qwen2", "qwen3")}
    assert [a.qkv_bias for a in families.values()] == [False, False, True, False]
    assert [a.qk_layernorm for a in families.values()] == [False, False, False, True]
    assert architecture_from_config(config(attention_bias=True, mlp_bias=True)).bias
    assert architecture_from_config(config(tie_word_embeddings=True)).share_embeddings_and_output_weights
    old = config()
    del old["num_key_value_heads"], old["head_dim"]  # as Llama 1 wrote it
    assert (architecture_from_config(old).num_query_groups, architecture_from_config(old).kv_channels) == (6, 4)


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({"model_type": "mistral", "sliding_window": 16}, 16),
        ({"model_type": "mistral", "sliding_window": 4096}, 64),
        ({"model_type": "mistral", "sliding_window": None}, 64),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False}, 64),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True}, 16),
        ({"model_type": "llama", "sliding_window": 16}, 64),
    ],
)
def test_an_active_sliding_window_limits_the_length_and_says_so(
    changes: dict[str, Any], longest: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert architecture_from_config(config(**changes)).max_position_embeddings == longest
    assert ("sliding_window of 16 tokens" in caplog.text) == (longest == 16)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_type": "gpt2"}, ConfigError, "'gpt2' is not supported; supported are llama, mistral, qwen2, qwen3"),
        ({"vocab_size": None}, CheckpointError, "has no vocab_size"),
        ({"quantization_config": {"bits": 4}}, ConfigError, "unquantized"),
        ({"hidden_act": "gelu"}, ConfigError, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ConfigError, "rotary scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, CheckpointError, "no low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, ConfigError, "partial_rotary_factor"),
        ({"attention_bias": True}, ConfigError, "attention_bias=True with mlp_bias=False"),
        ({"model_type": "qwen3", "attention_bias": True}, ConfigError, "attention_bias=True"),
    ],
)
def test_unsupported_models_are_named_in_one_line(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        architecture_from_config(config(**changes), where="somewhere/config.json")
    assert str(error.value).startswith("somewhere/config.json") and "\n" not in str(error.value)


def test_a_missing_or_broken_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        architecture_from_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        architecture_from_hf(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_scaling": LLAMA3, "rotary_base": 5e5},
        {"bias": True},
        {"qkv_bias": True, "share_embeddings_and_output_weights": True},
        {"qk_layernorm": True},
    ],
)
def test_a_made_config_describes_the_same_architecture(changes: dict[str, Any]) -> None:
    architecture = replace(SMALL, **changes)
    assert architecture_from_config(config_from_architecture(architecture)) == architecture


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "layernorm"},
        {"activation": "gelu"},
        {"rotary_percentage": 0.5},
        {"qk_layernorm": True, "bias": True},
    ],
)
def test_an_architecture_that_no_family_has_cannot_be_exported(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"model.{list(changes)[-1]}=.* cannot be exported"):
        config_from_architecture(replace(SMALL, **changes))


def test_the_source_config_is_kept_whole_but_for_the_dtype() -> None:
    source = config(dtype="float32", eos_token_id=[7, 8], a_key_of_the_future={"kept": True})
    assert exported_config(SMALL, source, torch.bfloat16) == source | {"dtype": "bfloat16"}
    with pytest.raises(ConfigError, match=r"num_layers=3, the model num_layers=2"):
        exported_config(SMALL, source | {"num_hidden_layers": 3}, torch.float32)


WRONG = ("x", [], {}, -1, 0, 1e300, True, 10**400, [[]])


@pytest.mark.parametrize("name", [*config(), "sliding_window", "initializer_range", "rope_theta"])
@pytest.mark.parametrize("value", WRONG, ids=[f"{type(value).__name__}-{i}" for i, value in enumerate(WRONG)])
def test_values_of_another_type_or_sign_are_named(name: str, value: Any) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=rf"^config\.json: {name} "):
        architecture_from_config(config(**{name: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": []}, "rope_scaling must be an object"),
        ({"rope_scaling": "llama3"}, "rope_scaling must be an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters: rope_theta must be a positive number"),
        ({"rope_scaling": {"rope_type": "llama3"} | LLAMA3 | {"factor": -1}}, "factor must be a positive number"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rotary scaling"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": 3}, "attention_bias must be true or false"),
        ({"num_key_value_heads": 4}, "4 query groups do not divide 6 attention heads"),
    ],
)
def test_settings_that_no_release_writes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message):
        architecture_from_config(config(**changes))


@pytest.mark.parametrize("names", [(), ("dtype",), ("torch_dtype",), ("dtype", "torch_dtype")])
def test_an_exported_config_says_one_dtype(names: tuple[str, ...]) -> None:
    exported = exported_config(SMALL, config(**dict.fromkeys(names, "float16")), torch.bfloat16)
    found = {name: exported[name] for name in ("dtype", "torch_dtype") if name in exported}
    assert found == dict.fromkeys(names or ("torch_dtype",), "bfloat16")
