"""``config.json`` and tensors of families with experts: what they differ in, what is refused, what is passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors", reason="pip install 'nemo-rpo[hf]'")
from safetensors.torch import save_file

from nemo_rpo.config.architecture import GPTArchitecture, architecture_from_yaml
from nemo_rpo.config.experts.expert_shape import Experts
from nemo_rpo.config.load import load_config
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.config import (
    architecture_from_config,
    config_from_architecture,
    exported_config,
    layers_left_out,
)
from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.weights import SafetensorsFolder

GIVEN = ["model.num_layers=3", "model.hidden_size=24", "model.num_attention_heads=6", "model.ffn_hidden_size=40"]
MIXTRAL = dict(num_local_experts=4, num_experts_per_tok=2)
QWEN = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, norm_topk_prob=True)
GLM = dict(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, n_shared_experts=2, first_k_dense_replace=1,
    n_group=1, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True, partial_rotary_factor=0.5,
)  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN | dict(shared_expert_intermediate_size=28, norm_topk_prob=False),
    "qwen3_moe": QWEN,
    "glm4_moe": GLM,
}


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    base = dict(
        model_type=model_type, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, vocab_size=30, max_position_embeddings=64, rms_norm_eps=1e-5,
    )  # fmt: skip
    return base | FAMILIES[model_type] | changes


def test_what_the_families_differ_in() -> None:
    found = {name: architecture_from_config(config(name)) for name in FAMILIES}
    assert found["mixtral"].experts == Experts(4, 40, 2)
    assert found["qwen3_moe"].experts == Experts(4, 20, 2) and found["qwen3_moe"].qk_layernorm
    assert found["qwen2_moe"].experts == Experts(
        4, 20, 2, moe_router_pre_softmax=True, moe_shared_expert_intermediate_size=28, moe_shared_expert_gate=True
    )
    assert found["qwen2_moe"].qkv_bias and not architecture_from_config(config("qwen2_moe", qkv_bias=False)).qkv_bias
    assert found["glm4_moe"].experts == Experts(
        4, 20, 2, (0, 1, 1), "sigmoid", moe_router_enable_expert_bias=True, moe_router_topk_scaling_factor=2.5,
        moe_shared_expert_intermediate_size=40,
    )  # fmt: skip
    assert found["glm4_moe"].rotary_percentage == 0.5
    sparse = architecture_from_config(config("qwen3_moe", decoder_sparse_step=2, mlp_only_layers=[]))
    assert sparse.experts.moe_layer_freq == (0, 1, 0)
    renamed = {("num_local_experts" if name == "num_experts" else name): v for name, v in config("qwen3_moe").items()}
    assert architecture_from_config(renamed) == found["qwen3_moe"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_made_config_describes_the_same_architecture(name: str) -> None:
    architecture = architecture_from_config(config(name))
    made = config_from_architecture(architecture)
    assert made["model_type"] == name and architecture_from_config(made) == architecture


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mixtral",
            {"moe_shared_expert_intermediate_size": 8},
            "model.moe_shared_expert_gate=False cannot be exported",
        ),
        ("mixtral", {"moe_router_pre_softmax": True}, "model.moe_router_pre_softmax=True cannot be exported: mixtral"),
        (
            "glm4_moe",
            {"moe_shared_expert_intermediate_size": 30},
            "model.moe_shared_expert_intermediate_size=30 cannot",
        ),
        ("qwen3_moe", {"moe_router_topk_scaling_factor": 2.0}, "model.moe_router_topk_scaling_factor=2.0 cannot be"),
    ],
)
def test_experts_that_no_family_has_cannot_be_exported(name: str, changes: dict[str, Any], message: str) -> None:
    architecture = architecture_from_config(config(name))
    with pytest.raises(ConfigError, match=f"^{message}"):
        config_from_architecture(replace(architecture, experts=replace(architecture.experts, **changes)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixtral", {"num_local_experts": None}, "has no num_local_experts"),
        ("qwen3_moe", {"num_experts": None}, "has no num_experts"),
        ("qwen2_moe", {"shared_expert_intermediate_size": None}, "has no shared_expert_intermediate_size"),
        ("qwen3_moe", {"moe_intermediate_size": "x"}, "moe_intermediate_size must be a positive whole number"),
        ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob must be true or false"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers must be a list"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}, "must have a 1 in it"),
        ("qwen3_moe", {"attention_bias": True}, "cannot build attention_bias=True with experts that have none"),
        ("qwen3_moe", {"num_experts_per_tok": 5}, "moe_router_topk=5 is more than"),
        ("glm4_moe", {"norm_topk_prob": False}, "norm_topk_prob=false is not supported"),
        ("glm4_moe", {"n_group": 2, "num_experts_per_tok": 4}, "n_group=2 with num_experts_per_tok=4 and topk_group=1"),
        ("glm4_moe", {"first_k_dense_replace": "x"}, "first_k_dense_replace must be a whole number"),
        ("mixtral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    ],
)
def test_what_cannot_be_read_is_one_line(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        architecture_from_config(config(name, **changes))
    assert "\n" not in str(caught.value)


def test_every_tensor_has_a_place_of_its_own_and_its_rows_once() -> None:
    for name in FAMILIES:
        tensors = megatron_tensors(architecture_from_config(config(name)))
        assert len({tensor.place for tensor in tensors}) == len(tensors)
        runs = [run for tensor in tensors for run in tensor.runs]
        rows = {run.name: 0 for run in runs}
        for run in runs:
            rows[run.name] += run.length
        assert {key: shape[0] for key, shape in hf_shapes(tensors).items()} == rows
    one = hf_shapes(megatron_tensors(architecture_from_config(config("mixtral"))))
    assert one["model.layers.2.block_sparse_moe.experts.3.w2.weight"] == (24, 40)
    assert one["model.layers.0.block_sparse_moe.gate.weight"] == (4, 24)


def test_layers_that_predict_further_tokens_are_passed_over_and_not_claimed(tmp_path: Path) -> None:
    source = config("glm4_moe", num_nextn_predict_layers=1)
    (tmp_path / "config.json").write_text(json.dumps(source))
    architecture: GPTArchitecture = architecture_from_config(source)
    shapes = hf_shapes(megatron_tensors(architecture))
    further = {"model.layers.3.eh_proj.weight": torch.zeros(2, 2)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()} | further, tmp_path / "model.safetensors")
    with SafetensorsFolder(tmp_path, layers_left_out(tmp_path)) as weights:
        weights.check(shapes, tied=False)
    with SafetensorsFolder(tmp_path) as weights, pytest.raises(CheckpointError, match=r"eh_proj\.weight has no place"):
        weights.check(shapes, tied=False)
    assert exported_config(architecture, source, torch.float32)["num_nextn_predict_layers"] == 0


def test_kernels_of_transformer_engine_are_refused_without_it() -> None:
    pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
    from nemo_rpo.config.schema import RunConfig
    from nemo_rpo.megatron.network.experts import expert_arguments

    cfg, architecture = RunConfig(), architecture_from_config(config("glm4_moe"))
    assert expert_arguments(replace(architecture, experts=None), cfg, grouped=False) == {}
    assert expert_arguments(architecture, cfg, grouped=True)["moe_layer_freq"] == [0, 1, 1]
    cfg.model.moe_permute_fusion = True
    assert expert_arguments(architecture, cfg, grouped=True)["moe_permute_fusion"]
    with pytest.raises(ConfigError, match=r"model\.moe_permute_fusion=true needs a GPU and Transformer Engine"):
        expert_arguments(architecture, cfg, grouped=False)


def test_a_width_that_no_layer_has_makes_no_difference() -> None:
    """A fresh model is exported, and the export is that model, also as an earlier round of it."""
    given = [*GIVEN, "model.num_moe_experts=4", "model.moe_ffn_hidden_size=20"]
    fresh = architecture_from_yaml(load_config("gpt_rpo", given, notify=lambda text: None).model, vocab_size=30)
    assert architecture_from_config(exported_config(fresh, None, torch.float32)) == fresh
    one, other = (architecture_from_config(config("qwen3_moe", intermediate_size=size)) for size in (40, 48))
    assert one == other
    wide, wider = (
        architecture_from_config(config("qwen3_moe", intermediate_size=size, mlp_only_layers=[0])) for size in (40, 48)
    )
    assert wide != wider
