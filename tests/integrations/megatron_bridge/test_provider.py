"""``model.provider=megatron_bridge``: Bridge's models, weights and exports under this package's engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from safetensors.torch import load_file
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-5
BRIDGE, TP2 = "model.provider=megatron_bridge", ["model.tensor_model_parallel_size=2", "model.sequence_parallel=true"]
STEPS = ["trainer.dpo.max_steps=4", "exp_manager.checkpoint_callback_params.save_hf_on_train_end=true"]
FAMILIES = {
    "llama": TP2,
    "qwen3": ["model.pipeline_model_parallel_size=2"],
    "qwen3_moe": ["model.expert_model_parallel_size=2"],
}


@pytest.fixture(scope="module")
def out(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, models = tmp_path_factory.mktemp("ran"), tmp_path_factory.mktemp("models")
    for name in ("qwen3", "qwen3_moe", "glm4_moe"):
        hf_models.make(name, models / name)
    tokenizer = f"model.tokenizer.type={world / 'model'}"

    def start(name: str) -> list[str]:
        return [] if name == "llama" else [f"pretrained_checkpoint.restore_from_path={models / name}", tokenizer]

    runs = {
        f"{family}, {provider}": [*STEPS, *layout, *start(family), f"model.provider={provider}"]
        for family, layout in FAMILIES.items()
        for provider in ("nemo_rpo", "megatron_bridge")
    }
    refused = {"Transformer Engine's layers on a CPU": [BRIDGE, *start("glm4_moe")]}
    script = Path(__file__).with_name("ranks_provider.py")
    run_ranks(script, 2, world, folder, json.dumps(runs), json.dumps(refused), timeout=400)
    return folder


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    return json.loads((out / "found.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_as_the_own_builder_does(found: dict[str, Any], family: str) -> None:
    ours, theirs = (found[f"{family}, {provider}"] for provider in ("nemo_rpo", "megatron_bridge"))
    assert len(theirs) == 4 and theirs[0]["loss"] != theirs[-1]["loss"]
    for own, bridged in zip(ours, theirs, strict=True):
        assert abs(own["loss"] - bridged["loss"]) <= TOLERANCE
        assert abs(own["grad_norm"] / bridged["grad_norm"] - 1) <= TOLERANCE
        assert max(abs(a - b) for a, b in zip(own["eta"], bridged["eta"], strict=True)) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_what_the_own_exporter_would(out: Path, family: str) -> None:
    folders = [out / f"{family}, {provider}" / "hf" for provider in ("nemo_rpo", "megatron_bridge")]
    ours, theirs = (
        {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
        for folder in folders
    )
    assert ours.keys() <= theirs.keys() and len(ours) > 10
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name].float(), weight.float(), rtol=0, atol=TOLERANCE)
    assert (folders[1] / "config.json").exists()


def test_what_cannot_run_here_is_one_line(found: dict[str, Any]) -> None:
    said = found["refused"]["Transformer Engine's layers on a CPU"]
    assert "the layers of Glm4MoeForCausalLM" in said and "Transformer Engine's" in said and "\n" not in said


def test_a_parameter_that_the_import_left_untouched_is_refused_by_name(found: dict[str, Any]) -> None:
    said = found["left untouched"]
    assert "left 1 parameters of this model untouched (spare)" in said and "\n" not in said
