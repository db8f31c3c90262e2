"""LoRA in the engine: one model whatever the layout, the base as its reference, and peft's adapters in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from engine import CONFIG, places
from lora_figures import hugging_face, logits_of, whole
from safetensors.torch import load_file
from torchrun import run_process, run_ranks

from nemo_rpo.config.load import load_config
from nemo_rpo.config.validate import validate_config
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.index import read_index
from nemo_rpo.megatron.compat.linear_layers import adapted_output, is_column_parallel, weights_of
from nemo_rpo.megatron.compat.transformer_engine import hand_out_normed_input
from nemo_rpo.training.logs.metrics import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

RANKS = Path(__file__).with_name("ranks_lora.py")
TUNING = "model.peft.lora_tuning"
LORA = [
    "model.peft.peft_scheme=lora",
    f"{TUNING}.adapter_dim=4",
    f"{TUNING}.alpha=8",
    "exp_manager.checkpoint_callback_params.save_hf_on_train_end=true",
]
LOOK = [*LORA, "model.optim.name=adam"]
MATRICES = f"{TUNING}.target_modules=[v_proj,q_proj,o_proj,up_proj,down_proj]"
TP2, PP2, CP2 = (f"model.{name}_parallel_size=2" for name in ("tensor_model", "pipeline_model", "context"))
SP, DROPOUT = "model.sequence_parallel=true", f"{TUNING}.adapter_dropout=0.3"
LOOKED: dict[int, dict[str, list[str]]] = {
    1: {"one rank": LOOK, "matrices": [*LOOK, MATRICES]},
    2: {
        "TP=2": [*LOOK, TP2],
        "TP=2, sequence parallel": [*LOOK, TP2, SP],
        "TP=2, sequence parallel, matrices": [*LOOK, TP2, SP, MATRICES],
        "PP=2, matrices": [*LOOK, PP2, MATRICES],
        "TP=2, dropout": [*LOOK, TP2, DROPOUT],
        "TP=2, sequence parallel, dropout": [*LOOK, TP2, SP, DROPOUT],
    },
}
ALIKE = {name: "matrices" if "matrices" in name else "one rank" for of in LOOKED.values() for name in of}
STEPS = [*LORA, "trainer.dpo.max_steps=6", "trainer.dpo.save_interval=3", "model.optim.lr=1e-2"]
LAST = "checkpoints/step=00000006"


@pytest.fixture(scope="module")
def ran(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one rank and then two have done."""
    out = tmp_path_factory.mktemp("ran")
    again = [f"model.peft.restore_from_path={out / 'whole' / 'adapter'}", "trainer.dpo.max_steps=1"]
    from_checkpoint = [f"model.peft.restore_from_path={out / 'whole' / LAST}", "trainer.dpo.max_steps=1"]
    earlier = f"model.rpo.previous_iterate={out / 'whole' / 'adapter'}"
    one = [
        ("whole", None, STEPS),
        ("resumed", "whole", STEPS),
        ("reward model", None, [*STEPS, "model.rpo.base_loss=bt", "trainer.dpo.max_steps=3"]),
        ("earlier round", None, [*STEPS, "model.rpo.base_loss=onpo", earlier, "trainer.dpo.max_steps=1"]),
        ("its own", None, [*STEPS, "model.rpo.base_loss=onpo", "trainer.dpo.max_steps=1"]),
        ("other reference", None, [*STEPS, *again, f"model.rpo.reference_from={world / 'model'}"]),
        ("second round", None, [*STEPS, *again]),
        ("second round, checkpoint", None, [*STEPS, *from_checkpoint]),
    ]
    two = [("resumed, TP=2, sequence parallel", "whole", [*STEPS, TP2, SP])]
    for ranks, trained in ((1, one), (2, two)):
        run_ranks(RANKS, ranks, world, out, json.dumps(LOOKED[ranks]), json.dumps(trained), timeout=400)
    return out


def said(ran: Path, layout: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(ran.glob(f"{layout}.[0-9].json"))]


@pytest.mark.parametrize("layout", ALIKE)
def test_the_base_is_a_switch_away(ran: Path, layout: str) -> None:
    """To the bit: a new adapter is its base, one that is switched off too, and weights come back after a merge."""
    everyones = said(ran, layout)
    assert len(everyones) == sum(layout in of and ranks for ranks, of in LOOKED.items())
    for one in everyones:
        assert one["fresh is base"] and one["off is base"] and one["unmerged"] and one["read back"]
        assert one["optimizer holds adapters alone"]
        assert one["moved"] > 0.1 and one["merged"] < 1e-5
        assert one["trained"] == said(ran, ALIKE[layout])[0]["trained"]


def test_as_many_weights_are_trained_as_peft_would(ran: Path, world: Path) -> None:
    peft, base = pytest.importorskip("peft"), hugging_face(world)
    theirs = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
    )
    [ours] = said(ran, "matrices")
    trained, of_all = ours["trained"]
    assert trained == theirs.get_nb_trainable_parameters()[0] < of_all / 2
    assert ours["log"]["trainable"] == f"{trained:,} of {of_all:,} weights ({trained / of_all:.2%})"
    assert ours["log"]["LoRA"].endswith("the reference is the base, adapters off")


@pytest.mark.parametrize("layout", [name for name in ALIKE if "dropout" in name])
def test_ranks_drop_alike_what_they_hold_alike(ran: Path, layout: str) -> None:
    """Gradients of what each tensor rank holds as a whole stay equal, and are not those without dropout."""
    found, without = whole(ran, layout), whole(ran, "one rank")
    assert found.keys() == without.keys()
    off = {key: float((found[key] - without[key]).abs().max() / without[key].abs().max()) for key in found}
    assert all(0.01 < value for value in off.values()), off


@pytest.mark.parametrize("layout", [name for name, one in ALIKE.items() if name != one and "dropout" not in name])
def test_gradients_are_those_of_one_rank(ran: Path, layout: str) -> None:
    found, expected = whole(ran, layout), whole(ran, ALIKE[layout])
    assert found.keys() == expected.keys() and len(found) >= 16
    for key, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, key
        torch.testing.assert_close(
            found[key], gradient, atol=2e-6, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )
    logits, others = load_file(ran / f"{layout}.logits"), load_file(ran / f"{ALIKE[layout]}.logits")
    for which in logits:
        torch.testing.assert_close(logits[which], others[which], atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ALIKE)
def test_peft_and_transformers_load_what_is_exported(ran: Path, world: Path, layout: str) -> None:
    peft = pytest.importorskip("peft")
    shaken = load_file(ran / f"{layout}.logits")["shaken"]
    beside = peft.PeftModel.from_pretrained(hugging_face(world), ran / f"{layout}.run" / "adapter")
    torch.testing.assert_close(logits_of(beside), shaken, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits_of(hugging_face(ran / f"{layout}.run" / "hf")), shaken, atol=1e-5, rtol=0)


def test_a_checkpoint_holds_adapters_alone(ran: Path) -> None:
    index = read_index(ran / "whole" / LAST)
    weights = {key for key in index if not key.startswith(("em.", "random."))}
    assert weights and all(".adapter.linear_" in key for key in weights)
    run = json.loads((ran / "whole" / LAST / "run.json").read_text())
    assert run["lora"]["rank"] == 4 and run["lora"]["scale"] == 2.0 and run["lora"]["base"] == run["origin"]["weights"]


def steps(folder: Path, after: int = 0) -> list[float]:
    """Loss and gradient norm of each step after ``after``."""
    rows = [row for row in read_metrics(folder) if row["split"] == "train" and row["step"] > after]
    return [row[name] for row in rows for name in ("loss", "grad_norm")]


def test_a_run_is_resumed_to_the_bit_and_on_other_ranks(ran: Path) -> None:
    unbroken, resumed = (load_file(ran / name / "adapter/adapter_model.safetensors") for name in ("whole", "resumed"))
    assert unbroken.keys() == resumed.keys() and all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    assert steps(ran / "whole", after=3) == steps(ran / "resumed", after=3) != []
    other = ran / "resumed, TP=2, sequence parallel"
    assert steps(other, after=3) == pytest.approx(steps(ran / "whole", after=3), rel=1e-5)
    elsewhere = load_file(other / "adapter/adapter_model.safetensors")
    for key, tensor in unbroken.items():
        torch.testing.assert_close(elsewhere[key], tensor, atol=1e-5, rtol=0)
    assert any(tensor.abs().max() > 1e-3 for key, tensor in unbroken.items() if "lora_B" in key)


def test_a_second_round_starts_from_the_adapter_of_the_first(ran: Path) -> None:
    """It is the reference too, so that all margins are 0; a folder of peft's and a checkpoint start the same."""
    first, other = steps(ran / "second round"), steps(ran / "second round, checkpoint")
    assert first == other and first[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-7)
    assert first[1] != steps(ran / "whole")[1]


def test_frozen_policies_are_adapters_of_their_own(ran: Path) -> None:
    """The earlier round's, which a new adapter is not; and the base, which the first round's adapter is not."""
    assert steps(ran / "earlier round")[0] != pytest.approx(steps(ran / "its own")[0], abs=1e-3)
    assert steps(ran / "other reference")[0] != pytest.approx(steps(ran / "second round")[0], abs=1e-3)


def test_a_reward_model_trains_its_head_beside_the_adapters(ran: Path) -> None:
    head = load_file(ran / "reward model" / "adapter/reward_head.safetensors")
    adapters = load_file(ran / "reward model" / "adapter/adapter_model.safetensors")
    assert all(weight.abs().max() > 1e-4 for weight in head.values()) and head
    assert any(tensor.abs().max() > 1e-4 for key, tensor in adapters.items() if "lora_B" in key)
    index = read_index(ran / "reward model" / "checkpoints/step=00000003")
    assert {key.split(".")[0] for key in index if "adapter" not in key} == {"reward_head", "optimizer", "em", "random"}


def test_a_run_is_evaluated_against_its_base(ran: Path, world: Path, tmp_path: Path) -> None:
    """The adapter beside its base gives the margins of the merged weights, whose reference is the base."""
    pyarrow = pytest.importorskip("pyarrow.parquet")
    found = []
    for name in ("whole", "whole/hf"):
        scores = tmp_path / f"{len(found)}.parquet"
        command = ["-m", "nemo_rpo.cli", "evaluate", ran / name, world / "validation.jsonl", "--scores", scores]
        result = run_process(list(map(str, command)))
        assert result.returncode == 0, result.stderr[-2000:]
        found.append(torch.tensor(pyarrow.read_table(scores)["delta"].to_pylist()))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    assert found[0].abs().max() > 0.01


class LayerNormColumnParallelLinear(torch.nn.Module):
    """Gives what Transformer Engine's fused layer gives."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.return_layernorm_output, self.bias = False, bias

    def forward(self, x: torch.Tensor) -> object:
        out, normed = 2 * x, x + 1
        if self.bias:
            return (out, 3 * x, normed)
        return (out, normed), None


@pytest.mark.parametrize("bias", [False, True])
def test_an_adapter_reads_the_normed_input_of_a_fused_layer(bias: bool) -> None:
    layer, x = LayerNormColumnParallelLinear(bias), torch.arange(4.0)
    hand_out_normed_input(layer)
    assert layer.return_layernorm_output and is_column_parallel(layer) is True
    for adapter, expected in ((None, 2 * x), (lambda normed: 10 * normed, 2 * x + 10 * (x + 1))):
        out, beside = adapted_output(layer, x, layer(x), adapter)
        assert torch.equal(out, expected) and (torch.equal(beside, 3 * x) if bias else beside is None)
    plain = torch.nn.Linear(2, 2)
    hand_out_normed_input(plain)
    assert is_column_parallel(plain) is None and not hasattr(plain, "return_layernorm_output")


class TEColumnParallelGroupedLinear(torch.nn.Module):
    """Keeps all experts in one tensor."""

    num_gemms, weight = 2, torch.ones(2, 3, 4)


def test_a_grouped_layer_with_one_tensor_for_all_has_no_matrices() -> None:
    """So that the line about layers that take no adapter is said."""
    layer = TEColumnParallelGroupedLinear()
    assert is_column_parallel(layer) is True and weights_of(layer) == []
    layer.weight0, layer.weight1 = layer.weight
    assert [of.shape for of in weights_of(layer)] == [(3, 4)] * 2


# --- what is refused

REFUSED = {
    "q_prj": "there is no layer q_prj (did you mean q_proj?); known: linear_qkv, linear_proj",
    "lm_head": "lm_head is read by the loss itself (and may be tied to the embedding) and takes no adapter",
    "linear_qkv,q_proj": "has both linear_qkv and q_proj, a part of it",
    "shared_experts.linear_fc1": "shared_experts.linear_fc1: shared experts have no adapters here",
    "expert.linear_fc1": "there is no layer expert.linear_fc1 (did you mean experts.linear_fc1?)",
    "experts,experts.up_proj": "has both experts.linear_fc1 and experts.up_proj, a part of it",
    "": "target_modules is empty",
}


@pytest.mark.parametrize("names", REFUSED)
def test_target_modules_that_are_none(names: str) -> None:
    assert_refused(ConfigError, REFUSED[names], f"{TUNING}.target_modules=[{names}]")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.peft.peft_scheme=none", "model.rpo.reference=adapters"], "needs model.peft.peft_scheme=lora"),
        (["model.peft.peft_scheme=null", "model.peft.restore_from_path=a"], "needs model.peft.peft_scheme=lora"),
        (["pretrained_checkpoint.restore_from_path=null"], "freezes the base, and there is none"),
        (["model.peft.peft_scheme=ia3"], "model.peft.peft_scheme must be one of lora, none or null; got 'ia3'"),
        ([f"{TUNING}.layer_selection=[1]"], "every layer has its adapters"),
        (
            [
                "model.peft.restore_from_path=a",
                "model.optim.overlap_grad_sync=true",
                "model.optim.overlap_param_sync=true",
            ],
            "gathers weights while the adapters of model.peft.restore_from_path are swapped in",
        ),
    ],
)
def test_settings_that_do_not_fit(overrides: list[str], line: str) -> None:
    assert_refused(ConfigError, line, *overrides)


def assert_refused(kind: type[Exception], line: str, *overrides: str) -> None:
    with pytest.raises(kind) as refused:
        settings = ["pretrained_checkpoint.restore_from_path=base", "model.data.data_prefix.train=x.jsonl", *LORA]
        validate_config(load_config(str(CONFIG), [*settings, *overrides], notify=lambda text: None))
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([f"{TUNING}.adapter_dim=8"], "has rank 4, and model.peft.lora_tuning.adapter_dim=8: set it to 4"),
        ([f"{TUNING}.alpha=4"], "has a scale of 2, the run 1: set model.peft.lora_tuning.alpha=8"),
        ([f"{TUNING}.target_modules=[mlp]"], "the run of gate_proj, up_proj, down_proj: set"),
        (["pretrained_checkpoint.restore_from_path={whole}/hf"], "is an adapter of other weights than those of"),
        (["pretrained_checkpoint.restore_from_path={whole}/adapter"], "is an adapter: name its base there"),
        (["model.peft.restore_from_path={world}/model"], "holds no adapter"),
        (["model.peft.restore_from_path={world}/nothing"], "is not a folder on this machine"),
    ],
)
def test_adapters_of_another_shape_or_base(ran: Path, world: Path, overrides: list[str], line: str) -> None:
    from nemo_rpo.training import setup

    start = f"model.peft.restore_from_path={ran / 'whole' / 'adapter'}"
    given = [override.format(whole=ran / "whole", world=world) for override in overrides]
    with pytest.raises((ConfigError, CheckpointError)) as refused:
        setup.check_start(
            load_config(str(CONFIG), [*places(world, ran), *LORA, start, *given], notify=lambda text: None)
        )
    assert line in str(refused.value) and "\n" not in str(refused.value)
