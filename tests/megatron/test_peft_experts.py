"""peft's tensors of experts: how they are put together and looked into, and what of them is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from safetensors.torch import save_file
from torch import Tensor

from nemo_rpo.config.adapters.targets import resolve_targets, targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.experts.expert_shape import Experts
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.adapter_mapping import adapter_tensors
from nemo_rpo.megatron.checkpoint.adapter.description import read_description
from nemo_rpo.megatron.checkpoint.adapter.fused_experts import FusedTensor, fuse, fused_tensors
from nemo_rpo.megatron.checkpoint.adapter.importer import PeftWeights
from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors

EXPERTS = Experts(num_moe_experts=3, moe_ffn_hidden_size=5, moe_router_topk=2)
MODEL = GPTArchitecture(2, 8, 5, 2, 1, 4, 50, 64, experts=EXPERTS)
BASE, RANK = megatron_tensors(MODEL), 2
SHARED, EACH, GATE = ["experts"], ["experts.gate_proj", "experts.up_proj", "experts.down_proj"], ["experts.gate_proj"]
FIRST = "base_model.model.model.layers.0.mlp.experts."


def shapes(names: list[str]) -> dict[str, tuple[int, ...]]:
    """Of the experts' own tensors."""
    return hf_shapes(adapter_tensors(BASE, resolve_targets(names), RANK).tensors)


def own(names: list[str]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(shape) for name, shape in shapes(names).items()}


def written(names: list[str], path: Path) -> dict[str, Tensor]:
    """As peft has them, in a file."""
    tensors = own(names)
    fuse(fused_tensors(BASE, resolve_targets(names), RANK), tensors)
    save_file(tensors, path)
    return tensors


def read(names: list[str], path: Path) -> dict[str, Tensor]:
    weights = PeftWeights(path, {}, partial(fused_tensors, BASE, resolve_targets(names), RANK))
    weights.check(shapes(names), tied=False)
    everything = (slice(None), slice(None))
    return {name: weights.read(name, everything) for name in shapes(names)}


def update(expert: int, gate_up: list[Tensor]) -> Tensor:
    """B A of one expert's gate and up, as peft's ParamWrapper reads A and B: e r i, o r e."""
    a, b = gate_up[0].reshape(3, -1, 8), gate_up[1].reshape(10, -1, 3)
    return b[:, :, expert] @ a[expert]


@pytest.mark.parametrize("names", [SHARED, EACH, GATE], ids=["shared", "each", "gate"])
def test_what_is_written_is_read(names: list[str], tmp_path: Path) -> None:
    """And its product is, for each expert, that of its own matrices."""
    stored, mine = written(names, tmp_path / "a"), own(names)
    found = read(names, tmp_path / "a")
    assert found.keys() == mine.keys() and all(torch.equal(found[name], mine[name]) for name in mine)
    inner = "" if names == GATE else "base_layer."
    fused = [stored[f"{FIRST}{inner}lora_{which}.weight"] for which in "AB"]
    stem = "base_model.model.model.layers.0.block_sparse_moe.experts."
    for expert in range(3):
        gate = mine[f"{stem}{expert}.w1.lora_B.weight"] @ mine[f"{stem}{expert}.w1.lora_A.weight"]
        torch.testing.assert_close(update(expert, fused)[:5], gate)
        up = torch.zeros(5, 8)
        if names != GATE:
            a = mine[f"{stem}{expert}.{'w1' if names == SHARED else 'w3'}.lora_A.weight"]
            up = mine[f"{stem}{expert}.w3.lora_B.weight"] @ a
        torch.testing.assert_close(update(expert, fused)[5:], up)


def test_peft_fuses_single_experts_in_the_same_way(tmp_path: Path) -> None:
    """A folder of transformers 4, which is refused, loaded by peft and saved again: the numbers are where we read."""
    peft = pytest.importorskip("peft", reason="adapters are compared with peft: pip install 'nemo-rpo[dev]'")
    why = "only transformers 5 and later keep experts fused"
    transformers = pytest.importorskip("transformers", minversion="5", reason=why)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    save_file(own(EACH), old / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["w1", "w2", "w3"]}
    (old / "adapter_config.json").write_text(json.dumps({**config, "inference_mode": True}))
    sizes = dict(num_hidden_layers=2, hidden_size=8, intermediate_size=5, num_local_experts=3, num_experts_per_tok=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, vocab_size=50)
    base = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    peft.PeftModel.from_pretrained(base, old).save_pretrained(new)
    assert set(read_description(new).matrices) == set(EACH)
    found, mine = read(EACH, new / "adapter_model.safetensors"), own(EACH)
    assert found.keys() == mine.keys() and all(torch.equal(found[name], mine[name]) for name in mine)


def test_an_a_that_gate_and_up_share_is_both_of_theirs(tmp_path: Path) -> None:
    written(SHARED, tmp_path / "a")
    found = read(EACH, tmp_path / "a")
    stem = "base_model.model.model.layers.1.block_sparse_moe.experts.2."
    assert torch.equal(found[f"{stem}w1.lora_A.weight"], found[f"{stem}w3.lora_A.weight"])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    stored = written(EACH, tmp_path / "each")
    with pytest.raises(
        ConfigError, match=r"an A of its own for an expert's gate and up .*: name experts.gate_proj and"
    ):
        read(SHARED, tmp_path / "each")
    stored[f"{FIRST}base_layer.lora_B.weight"] += 1
    save_file(stored, tmp_path / "mixed")
    with pytest.raises(ConfigError, match=r"has numbers outside of the matrices of .*: name experts.linear_fc1"):
        read(EACH, tmp_path / "mixed")
    save_file({"base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight": torch.ones(2, 2)}, tmp_path / "4")
    with pytest.raises(CheckpointError, match=r"has adapters of single experts, as of transformers 4"):
        read(EACH, tmp_path / "4")
    written(["experts.down_proj"], tmp_path / "down")
    with pytest.raises(CheckpointError, match=r"has no tensor .*experts.base_layer.lora_A.weight, which"):
        read(SHARED, tmp_path / "down")


DOUBLED = {"rank_pattern": {r".*\.gate_up_proj": 8}, "alpha_pattern": {r".*\.gate_up_proj": 16}}


@pytest.mark.parametrize(
    ("more", "matrices"),
    [
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, ["v_proj", *EACH[:2]]),
        ({"target_parameters": ["gate_up_proj", "down_proj"], **DOUBLED}, ["v_proj", *EACH]),
        ({"target_parameters": ["model.layers.0.mlp.down_proj.weight"]}, ["v_proj", "down_proj"]),
        ({"target_parameters": ["gate_up_proj"], "rank_pattern": {"gate_up_proj": 8}}, "alpha_pattern is more"),
        ({"target_parameters": ["gate_up_proj"], "rank_pattern": {"v_proj": 8}}, "rank_pattern or"),
        ({"target_parameters": ["gate_up_proj"], "rank_pattern": ["gate_up_proj"]}, "rank_pattern is no dict"),
        ({"target_parameters": "gate_up_proj"}, "target_parameters is no list"),
        ({"target_parameters": ["mlp.experts.gate_up"]}, "adapter_config.json: there is no layer experts.gate_up"),
        ({"target_modules": ["v_proj", "w1"]}, "has adapters of single experts"),
        ({"target_modules": ["v_proj", "mlp.experts.0.up_proj"]}, "has adapters of single experts"),
    ],
)
def test_peft_says_which_experts_matrices_it_has(more: dict, matrices: list[str] | str, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], **more}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    if isinstance(matrices, str):
        with pytest.raises(CheckpointError, match=matrices):
            read_description(tmp_path)
    else:
        found = read_description(tmp_path)
        assert set(found.matrices) == set(matrices) and (found.rank, found.scale) == (4, 2)


def test_experts_that_a_model_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"names experts.linear_fc1, and the model has no experts: leave it out"):
        targets_in(replace(MODEL, experts=None), ["linear_qkv", "experts"])
    with pytest.raises(
        ConfigError, match=r"all MLPs of the model are experts, which have adapters where they are named"
    ):
        targets_in(MODEL, ["mlp"])
    assert "experts.linear_fc1" not in targets_in(MODEL, ["all"])


def test_a_fused_tensor_is_whole() -> None:
    """Each expert has a block of each of its tensors, inside the fused one's shape."""
    for one in fused_tensors(BASE, resolve_targets(EACH), RANK):
        assert isinstance(one, FusedTensor) and len(one.blocks) == 3
        stored = one.fused(own(EACH))
        assert tuple(stored.shape) == one.stored_shape and one.is_apart(stored)
