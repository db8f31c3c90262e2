"""Mixtures of experts: one trajectory under every layout, margins of exactly 0 at the start, losses of the router that
reach no figure, and checkpoints that go on under another number of expert ranks.

The tolerance is that of ``test_trajectory.py``. What runs is a GLM with all that families of experts have; Mixtral and
Qwen2-MoE beside it where their routers differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
pytest.importorskip("transformers", reason="the models are made with transformers: pip install 'nemo-rpo[hf]'")
from engine import CONFIG
from lora_figures import hugging_face, logits_of, whole
from safetensors.torch import load_file
from torchrun import run_ranks

from nemo_rpo.config.adapters.adapter_size import adapter_weights
from nemo_rpo.config.load import load_config
from nemo_rpo.megatron.checkpoint.adapter.description import read_description
from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf
from nemo_rpo.megatron.checkpoint.index import read_index
from nemo_rpo.planning.memory import stage_memory

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

HERE = Path(__file__).parent
TOLERANCE, STEPS = 1e-5, 3
TP, PP, VP, CP, EP, ETP = (
    f"model.{name}_parallel_size="
    for name in (
        "tensor_model",
        "pipeline_model",
        "virtual_pipeline_model",
        "context",
        "expert_model",
        "expert_tensor",
    )
)
SEQUENCE, GATHER = "model.sequence_parallel=true", "model.moe_token_dispatcher_type=allgather"
RESIDENT, CACHED = "model.rpo.reference=resident", "model.rpo.reference=cached"
PACKED = ["model.data.packed_sequence=true", "model.data.packed_sequence_size=80"]
ONE_PROMPT, TWO_PROMPTS = "model.data.share_prompts=always", "model.data.share_prompts=never"
FULL_RECOMPUTE = [
    "model.activations_checkpoint_granularity=full",
    "model.activations_checkpoint_method=uniform",
    "model.activations_checkpoint_num_layers=1",
]
AUX = ["model.moe_aux_loss_coeff=0.05", "model.moe_z_loss_coeff=0.01"]
OVERLAP = ["model.optim.overlap_grad_sync=true", "model.optim.overlap_param_sync=true"]
LORA = ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=4", "model.optim.lr=1e-2"]
SAVES, SECOND = "trainer.dpo.save_interval=2", "checkpoints/step=00000002"
EXPORTS = "exp_manager.checkpoint_callback_params.save_hf_on_train_end=true"
TARGETS = "model.peft.lora_tuning.target_modules="
# Beside experts, and beside all else; gate and up of an expert share their A, or have one each.
EXPERTS_TOO = [*LORA, "model.peft.lora_tuning.alpha=8", f"{TARGETS}[all,experts]"]
EACH_MATRIX = [*EXPERTS_TOO, f"{TARGETS}[all-linear,experts.gate_proj,experts.up_proj,experts.down_proj]"]

LAYOUTS: dict[int, dict[str, list[str]]] = {
    1: {
        "one rank": [],
        "resident reference": [RESIDENT],
        "cached reference": [CACHED],
        "packed, one prompt": [*PACKED, ONE_PROMPT],
        "gathered": [GATHER, "model.optim.name=adam"],
        "full recompute": FULL_RECOMPUTE,
    },
    2: {
        "EP=2": [f"{EP}2"],
        "EP=2, gathered, plain optimizer, resident": [f"{EP}2", GATHER, "model.optim.name=adam", RESIDENT],
        "EP=2, packed, one prompt": [f"{EP}2", *PACKED, ONE_PROMPT],
        "EP=2, packed, gathered, cached": [f"{EP}2", *PACKED, TWO_PROMPTS, GATHER, CACHED],
        "TP=2, SP, EP=2": [f"{TP}2", SEQUENCE, f"{EP}2", f"{ETP}1"],
        "TP=2, SP": [f"{TP}2", SEQUENCE],
        "CP=2": [f"{CP}2"],
        "CP=2, EP=2": [f"{CP}2", f"{EP}2"],
        "PP=2, interleaved, packed": [f"{PP}2", f"{VP}2", *PACKED, ONE_PROMPT],
    },
    4: {
        "PP=2, EP=2": [f"{PP}2", f"{EP}2"],
        "PP=2, interleaved, EP=2, packed": [f"{PP}2", f"{VP}2", f"{EP}2", *PACKED, ONE_PROMPT],
        "TP=2, SP, EP=2, experts' TP=2": [f"{TP}2", SEQUENCE, f"{EP}2", f"{ETP}2", GATHER],
        "TP=2, SP, EP=2, DP=2": [f"{TP}2", SEQUENCE, f"{EP}2", f"{ETP}1", *OVERLAP, RESIDENT],
    },
}
FAMILIES = {1: [], 2: [f"{EP}2"]}  # others, under one layout of each number of ranks
WITH_ADAPTERS = FAMILIES | {4: LAYOUTS[4]["PP=2, EP=2"]}
PLAIN = "model.optim.name=adam"  # whose gradients are whole on every rank
MERGED, MATRICES = "looked at, merged, grouped", "looked at, each matrix"
LOOKED: dict[int, dict[str, list[str]]] = {
    1: {MERGED: [*EXPERTS_TOO, PLAIN], MATRICES: [*EACH_MATRIX, PLAIN]},
    2: {"looked at, each matrix, TP=2, SP, grouped": [*EACH_MATRIX, PLAIN, f"{TP}2", SEQUENCE]},
    4: {
        "looked at, TP=2, SP, EP=2, experts' TP=2": [*EXPERTS_TOO, PLAIN, *LAYOUTS[4]["TP=2, SP, EP=2, experts' TP=2"]]
    },
}
ALIKE = {name: MATRICES if "each matrix" in name else MERGED for of in LOOKED.values() for name in of}
ADAPTED: dict[int, dict[str, list[str]]] = {
    1: {"one rank": [SAVES], "full recompute, packed": [*FULL_RECOMPUTE, *PACKED, ONE_PROMPT]},
    2: {"EP=2": [f"{EP}2", SAVES]},
    4: {name: LAYOUTS[4][name] for name in ("TP=2, SP, EP=2, experts' TP=2", "TP=2, SP, EP=2, DP=2")},
}
RESUMED = ("adapted, EP=2, on one rank", "adapted, one rank, on PP=2, EP=2")
PEFT = "adapter/adapter_model.safetensors"
# Whose weights are counted, and compared with the planner's.
COUNTED = {name: LAYOUTS[4][name] for name in ("PP=2, EP=2", "TP=2, SP, EP=2, experts' TP=2", "TP=2, SP, EP=2, DP=2")}
Figures = list[dict[str, float]]


def run(
    overrides: list[str], steps: int = STEPS, model: str = "glm4_moe", after: Path | None = None, looks: bool = False
) -> dict[str, Any]:
    longer = [f"trainer.dpo.max_steps={steps}", "model.optim.sched.max_steps=20"]
    return {
        "model": model,
        "overrides": [*longer, *overrides],
        "after": None if after is None else str(after),
        "looks": looks,
        "count": overrides in COUNTED.values(),
        "validates": PACKED[0] in overrides,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import expert_worlds

    return expert_worlds.make(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def folder_of(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run. Two ranks run first, then one, then four: each goes on from checkpoints of those before."""
    folders: dict[int, Path] = {}

    def runs_of(ranks: int) -> dict[str, dict[str, Any]]:
        runs = {name: run(overrides) for name, overrides in LAYOUTS[ranks].items()}
        for model in ("qwen2_moe", "mixtral") if ranks in FAMILIES else ():
            runs[f"{model}, {ranks}"] = run(FAMILIES[ranks], 2, model)
        runs[f"LoRA, {ranks}"] = run([*LORA, *WITH_ADAPTERS[ranks]], 2)
        runs |= {name: run([*overrides, EXPORTS], looks=True) for name, overrides in LOOKED[ranks].items()}
        runs |= {f"adapted, {name}": run([*EXPERTS_TOO, *of]) for name, of in ADAPTED[ranks].items()}
        if ranks == 2:
            runs["half, EP=2"] = run([f"{EP}2", SAVES], steps=2)
            runs["half, EP=2, resumed"] = run([f"{EP}2"], after=folders[2] / "half, EP=2")
            runs["adapted, EP=2, resumed"] = run([*EXPERTS_TOO, f"{EP}2"], after=folders[2] / "adapted, EP=2" / SECOND)
        if ranks == 1:
            runs["router's losses"] = run(AUX)
            runs["half, one rank"] = run([SAVES], steps=2)
            runs["EP=2, resumed on one rank"] = run([], after=folders[2] / "half, EP=2")
            second = f"model.peft.restore_from_path={folders[2] / 'adapted, EP=2' / 'adapter'}"
            runs["adapted, second round"] = run([*EXPERTS_TOO, second], steps=1)
            runs["adapted, EP=2, on one rank"] = run(EXPERTS_TOO, after=folders[2] / "adapted, EP=2" / SECOND)
        if ranks == 4:
            again = [*EXPERTS_TOO, *LAYOUTS[4]["PP=2, EP=2"]]
            runs["adapted, one rank, on PP=2, EP=2"] = run(again, after=folders[1] / "adapted, one rank" / SECOND)
            runs["one rank, resumed on PP=2, EP=2"] = run([f"{PP}2", f"{EP}2"], after=folders[1] / "half, one rank")
        return runs

    for ranks in (2, 1, 4):
        folders[ranks] = tmp_path_factory.mktemp("ran")
        run_ranks(HERE / "ranks_experts.py", ranks, world, folders[ranks], json.dumps(runs_of(ranks)), timeout=400)

    def left_by(name: str) -> Path:
        [folder] = [folder / name for folder in folders.values() if (folder / name).exists()]
        return folder

    return left_by


@pytest.fixture(scope="module")
def left(folder_of: Callable[[str], Path]) -> Callable[[str], dict[str, Any]]:
    """Figures and weights of a run."""
    return lambda name: json.loads(folder_of(name).with_name(f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def looked_at(folder_of: Callable[[str], Path]) -> Callable[[str], list[Any]]:
    """What each rank says."""

    def said(name: str) -> list[Any]:
        folder = folder_of(f"{name}.run").parent
        return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}.[0-9].json"))]

    return said


@pytest.fixture(scope="module")
def launched(left: Callable[[str], dict[str, Any]]) -> Callable[[str], Figures]:
    """The figures of a run."""
    return lambda name: left(name)["figures"]


def differences(found: Figures, expected: Figures) -> dict[str, float]:
    """The largest over all steps; relative for the gradient norm."""
    assert len(found) == len(expected) > 0
    steps = list(zip(found, expected, strict=True))
    return {
        name: max(abs(a[name] - b[name]) / (b[name] if name == "grad_norm" else 1) for a, b in steps)
        for name in expected[0]
    }


def test_the_trajectory_goes_somewhere(launched: Callable[[str], Figures]) -> None:
    figures = launched("one rank")
    assert len(figures) == STEPS
    for figure in ("loss", "margin"):
        assert abs(figures[-1][figure] - figures[0][figure]) > 100 * TOLERANCE


@pytest.mark.parametrize("layout", [name for group in LAYOUTS.values() for name in group if name != "one rank"])
def test_every_layout_gives_the_same_numbers(layout: str, launched: Callable[[str], Figures]) -> None:
    found = differences(launched(layout), launched("one rank"))
    assert {name: value for name, value in found.items() if not value <= TOLERANCE} == {}


@pytest.mark.parametrize("model", ["qwen2_moe", "mixtral"])
def test_every_family_gives_the_same_numbers(model: str, launched: Callable[[str], Figures]) -> None:
    found = differences(launched(f"{model}, 2"), launched(f"{model}, 1"))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("ranks", [2, 4])
def test_adapters_stand_outside_of_experts_and_give_the_same_numbers(
    ranks: int, launched: Callable[[str], Figures], folder_of: Callable[[str], Path], world: Path
) -> None:
    """On every layout; what is exported is the same, names what it adapts by paths, of which none is an expert's, and
    is read by peft, number for number.
    """
    found = differences(launched(f"LoRA, {ranks}"), launched("LoRA, 1"))
    assert max(found.values()) <= TOLERANCE and launched(f"LoRA, {ranks}")[0]["margin"] == 0, found
    one, other = (load_file(folder_of(f"LoRA, {n}") / "adapter/adapter_model.safetensors") for n in (1, ranks))
    assert one.keys() == other.keys() and max(float((one[key] - other[key]).abs().max()) for key in one) <= TOLERANCE
    said = json.loads((folder_of("LoRA, 1") / "adapter/adapter_config.json").read_text())
    paths = [*said["target_modules"], *(name.removesuffix(".weight") for name in said["target_parameters"])]
    assert len(paths) == 4 * 4 + 3 and {path for path in paths if "mlp" in path} == {
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    assert {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in one} == set(paths)
    peft = pytest.importorskip("peft", reason="adapters are compared with peft: pip install 'nemo-rpo[dev]'")
    model = peft.PeftModel.from_pretrained(hugging_face(world / "glm4_moe"), folder_of("LoRA, 1") / "adapter")
    read = peft.get_peft_model_state_dict(model)
    assert read.keys() == one.keys() and all(torch.equal(read[key], one[key]) for key in one)


# --- adapters on experts


@pytest.mark.parametrize(
    "name", [f"adapted, {name}" for of in ADAPTED.values() for name in of if name != "one rank"] + list(RESUMED)
)
def test_adapters_of_experts_give_the_same_numbers(name: str, launched: Callable[[str], Figures]) -> None:
    figures, expected = launched(name), launched("adapted, one rank")
    found = differences(figures, expected[-len(figures) :])
    assert max(found.values()) <= TOLERANCE, found
    assert len(figures) == 1 if name in RESUMED else figures[0]["margin"] == 0


def test_adapters_of_experts_are_trained_and_resumed_to_the_bit(
    launched: Callable[[str], Figures], folder_of: Callable[[str], Path]
) -> None:
    assert launched("adapted, EP=2, resumed") == launched("adapted, EP=2")[-1:]
    one, again = (load_file(folder_of(name) / PEFT) for name in ("adapted, EP=2", "adapted, EP=2, resumed"))
    assert one.keys() == again.keys() and all(torch.equal(one[key], again[key]) for key in one)
    assert any(of.abs().max() > 1e-3 for key, of in one.items() if "experts" in key and "lora_B" in key)
    index = read_index(folder_of("adapted, EP=2") / SECOND)
    weights = {key for key in index if not key.startswith(("em.", "random."))}
    assert all(".adapter.linear_" in key for key in weights) and any("experts.experts" in key for key in weights)


def test_adapters_of_experts_start_a_second_round(launched: Callable[[str], Figures]) -> None:
    """They are its reference too; the first round's third step began with other adapters, and other gradients."""
    [first] = launched("adapted, second round")
    assert first["margin"] == 0
    assert all(abs(first["grad_norm"] - of["grad_norm"]) > 1e-3 for of in launched("adapted, EP=2"))


@pytest.mark.parametrize("layout", ALIKE)
def test_the_base_is_a_switch_away_from_adapted_experts(layout: str, looked_at: Callable[[str], list[Any]]) -> None:
    """To the bit, as in ``test_lora.py``; and all layouts agree on how many weights are trained."""
    for one in looked_at(layout):
        assert one["fresh is base"] and one["off is base"] and one["unmerged"] and one["read back"]
        assert one["optimizer holds adapters alone"]
        assert one["moved"] > 0.1 and one["merged"] < 1e-5
        assert one["trained"] == looked_at(ALIKE[layout])[0]["trained"]


@pytest.mark.parametrize("layout", ALIKE)
def test_the_planner_counts_the_adapters_that_the_ranks_have(
    layout: str, world: Path, looked_at: Callable[[str], list[Any]]
) -> None:
    architecture, everyones = architecture_from_hf(world / "glm4_moe"), looked_at(layout)
    given = next(of[layout] for of in LOOKED.values() if layout in of)
    cfg = load_config(str(CONFIG), ["model.data.data_prefix.train=none", *given], notify=lambda text: None)
    for one in everyones:
        assert stage_memory(cfg, architecture, len(everyones), 0).gradients == 4 * one["trained here"]
    assert adapter_weights(architecture, cfg.model.peft) == everyones[0]["trained"][0]


@pytest.mark.parametrize("layout", [name for name, one in ALIKE.items() if name != one])
def test_gradients_of_experts_adapters_are_those_of_one_rank(layout: str, folder_of: Callable[[str], Path]) -> None:
    """On every rank that has them: what is whole where experts are split is summed over the ranks that split them."""
    found, expected = (whole(folder_of(f"{name}.run").parent, name) for name in (layout, ALIKE[layout]))
    assert found.keys() == expected.keys() and len(found) == 2 * (4 * 2 + 2 + 3 * 4 * 2)
    assert sum(of.abs().max() > 1e-6 for key, of in expected.items() if "experts" in key) > 20  # others have no tokens
    for key, gradient in expected.items():
        torch.testing.assert_close(
            found[key], gradient, atol=2e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}:{text}"
        )


def test_an_expert_with_its_adapter_is_one_with_merged_matrices(looked_at: Callable[[str], list[Any]]) -> None:
    twin = looked_at(MERGED)[0]["twin"]
    assert twin["adapters"] == 2 * 4 and twin["reached"] >= 0.5  # of the group that tokens choose
    assert twin["output"] < 1e-5 and twin["gradients"] < 1e-5, twin


@pytest.mark.parametrize("layout", [name for name in ALIKE if "grouped" in name])
def test_adapters_beside_grouped_experts_are_those_beside_single_ones(
    layout: str, looked_at: Callable[[str], list[Any]]
) -> None:
    """A stand-in for Transformer Engine's grouped layer: weights, output, gradients, and what checkpoints hold."""
    for one in looked_at(layout):
        assert one["grouped"] and all(one["grouped"].values()), one["grouped"]


@pytest.mark.parametrize("layout", ALIKE)
def test_peft_and_transformers_load_adapted_experts(
    layout: str, folder_of: Callable[[str], Path], world: Path, tmp_path: Path
) -> None:
    """And what peft saves of it is what it has read, and is read as the same adapter."""
    peft = pytest.importorskip("peft", reason="adapters are compared with peft: pip install 'nemo-rpo[dev]'")
    folder = folder_of(f"{layout}.run")
    shaken = load_file(folder.with_name(f"{layout}.logits"))["shaken"]
    beside = peft.PeftModel.from_pretrained(hugging_face(world / "glm4_moe"), folder / "adapter")
    torch.testing.assert_close(logits_of(beside), shaken, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_of(hugging_face(folder / "hf")), shaken, atol=1e-5, rtol=0)
    beside.save_pretrained(tmp_path)
    mine, theirs = read_description(folder / "adapter"), read_description(tmp_path)
    assert (mine.rank, mine.scale, set(mine.matrices)) == (theirs.rank, theirs.scale, set(theirs.matrices))
    one, other = (load_file(at / "adapter_model.safetensors") for at in (folder / "adapter", tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- what holds beside the trajectory


@pytest.mark.parametrize("layout", [name for group in LAYOUTS.values() for name in group if "cached" not in name])
def test_margins_begin_at_exactly_0(layout: str, launched: Callable[[str], Figures]) -> None:
    assert launched(layout)[0]["margin"] == 0


@pytest.mark.parametrize("layout", [name for group in LAYOUTS.values() for name in group if ", packed" in name])
def test_ranks_stay_in_step_where_the_last_batch_is_not_full(
    layout: str, left: Callable[[str], dict[str, Any]]
) -> None:
    """21 pairs in batches of 16, in packs: a rank may have none, and still runs through the experts of the others."""
    found, expected = left(layout)["held out"], left("packed, one prompt")["held out"]
    assert len(found) == len(expected) > 1
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= TOLERANCE


def test_the_losses_of_the_router_reach_the_gradient_and_no_figure(launched: Callable[[str], Figures]) -> None:
    plain, with_losses = launched("one rank")[0], launched("router's losses")[0]
    for name in ("loss", "margin", "em/posterior_mean"):
        assert with_losses[name] == plain[name]
    assert abs(with_losses["grad_norm"] / plain["grad_norm"] - 1) > 1e-3


def test_a_resumed_run_is_the_unbroken_one_to_the_bit(launched: Callable[[str], Figures]) -> None:
    assert launched("half, EP=2, resumed") == launched("EP=2")


@pytest.mark.parametrize("resumed", ["EP=2, resumed on one rank", "one rank, resumed on PP=2, EP=2"])
def test_a_run_goes_on_under_another_number_of_expert_ranks(resumed: str, launched: Callable[[str], Figures]) -> None:
    found = differences(launched(resumed), launched("one rank"))
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("layout", COUNTED)
def test_the_planner_counts_the_weights_that_the_ranks_have(
    layout: str, world: Path, left: Callable[[str], dict[str, Any]]
) -> None:
    architecture = architecture_from_hf(world / "glm4_moe")
    cfg = load_config(str(CONFIG), ["model.data.data_prefix.train=none", *COUNTED[layout]], notify=lambda text: None)
    for stage, weights in left(layout)["weights"]:
        assert stage_memory(cfg, architecture, 4, stage).gradients == 4 * weights
