"""Whole runs of the recipe through NeMo-Aligner's classes, on several ranks, and through the example.

The figures to reach are those of the package's own engine on the same weights and rows (``engine_trajectory.json``,
which ``test_engine_side.py`` holds the engine to), within 1e-5, and η of the margin buffer within 1e-4.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from paths import ROOT
from torchrun import run_ranks

from nemo_rpo.integrations.em_state import MARGINS_FILE

from . import world

pytestmark = pytest.mark.distributed
EXAMPLE = Path(__file__).with_name("ranks_example.py")
TENSOR, PIPELINE = (f"model.{name}_model_parallel_size" for name in ("tensor", "pipeline"))
EMA, BUFFER = {"model.rpo": {"estimator": "ema"}}, {"model.rpo": {"buffer": world.BUFFER}}  # the buffer is the default
# It clips by itself, to the norm that it takes from here.
DISTRIBUTED = {"model.optim.name": "mcore_distributed_optim", "trainer.gradient_clip_val": 1.0}


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, {"model.micro_batch_size": 4}),
        (2, {TENSOR: 2}),
        (2, {TENSOR: 2, "model.sequence_parallel": True, **DISTRIBUTED}),
        (2, {PIPELINE: 2, "model.micro_batch_size": 1}),
    ],
    ids=["micro-batch 4", "TP=2", "TP=2, SP, distributed optimizer", "PP=2"],
)
def test_losses_and_eta_are_the_engines(ranks, overrides, train):
    for found, estimator in zip(train(ranks, overrides | EMA, overrides | BUFFER), ("ema", "buffer"), strict=True):
        assert_is_the_engines(found, estimator)


def assert_is_the_engines(found: dict[str, Any], estimator: str) -> None:
    expected, eta = world.trajectory()[estimator], {"ema": 1e-5, "buffer": 1e-4}[estimator]
    np.testing.assert_allclose([step["loss"] for step in found["train"]], expected["loss"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["eta"], expected["eta"], rtol=0, atol=eta)
    np.testing.assert_allclose(found["settled"], expected["settled"], rtol=0, atol=eta)


@pytest.mark.parametrize("ranks", [1, 2], ids=["one rank", "DP=2"])
def test_a_run_is_the_engines_and_goes_on_as_if_it_had_not_stopped(ranks, train):
    half = {"trainer.dpo.val_check_interval": 2, "trainer.dpo.save_interval": 2, "trainer.dpo.max_steps": 2}
    rest = half | {"trainer.dpo.max_steps": world.STEPS}
    runs = []
    for name, estimator in (("ema", EMA), ("buffer", BUFFER)):
        shared = estimator | {"exp_manager.explicit_log_dir": name}
        runs += [estimator, shared | half, shared | rest]
    ema, *parts_of_ema, buffer, first, second = train(ranks, *runs)
    assert_is_the_engines(ema, "ema")
    assert_is_the_engines(buffer, "buffer")
    for whole, parts in ((ema, parts_of_ema), (buffer, (first, second))):
        assert parts[0]["eta"] + parts[1]["eta"] == whole["eta"]
        assert parts[1]["settled"] == whole["settled"]
    assert ema["settled"] == ema["eta"][-1]
    start, _, third, last = buffer["eta"]
    assert set(start) == {0.9} and third == last != start  # a refit after the third step, and one at the end
    assert last != buffer["settled"] != first["settled"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.dpo.preference_loss": "rpo_bwd_kl", "model.dpo.sft_loss_weight": 0.1},
        {"model.peft.peft_scheme": "lora", "model.dpo.preference_loss": "ipo"},
    ],
    ids=["reward-aware with SFT", "LoRA"],
)
def test_switched_off_it_is_nemo_aligners_own(overrides, train):
    [stock] = train(1, overrides, stock=True)
    [ours] = train(1, overrides | {"model.rpo": {"enabled": False}})
    for split in ("train", "val"):
        for before, after in zip(stock[split], ours[split], strict=True):
            if before["rewards_chosen_mean"] == before["rewards_rejected_mean"] == 0:  # no pair has a margin yet
                assert (before.pop("acc"), after["acc"]) == (0, 0.5)
            names = {"loss", "preference_loss", "acc", "rewards_chosen_mean", "rewards_rejected_mean"}
            for name in names & before.keys():
                assert after[name] == pytest.approx(before[name], abs=5e-6), name
    assert ours["train"][0]["loss"] != ours["train"][-1]["loss"]


def test_lora_learns_reliabilities(train):
    [found] = train(1, {"model.peft.peft_scheme": "lora", "model.optim.lr": 0.05} | EMA)
    assert found["train"][0]["margin"] == 0.0
    assert found["eta"][0] == pytest.approx([0.9] * 6)
    assert min(found["eta"][-1]) < 0.89


# --- the example


def recipe(folder: Path, run: Path, **overrides: object) -> list[str]:
    """Writes a recipe's YAML without a block ``rpo``; the example's arguments."""
    run.parent.mkdir(parents=True, exist_ok=True)
    made = world.recipe(folder, run, {key.replace("__", "."): value for key, value in overrides.items()})
    (run.parent / "gpt_dpo.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    buffer = [f"+model.rpo.buffer.{name}={value}" for name, value in world.BUFFER.items()]
    return ["--config-path", str(run.parent), "--config-name", "gpt_dpo", *buffer]


def reliabilities(run: Path) -> dict[str, tuple[float, float]]:
    """η and labels of every annotator, as the example leaves them in the run's folder."""
    saved = json.loads((run / "rpo_state.json").read_text(encoding="utf-8"))
    return {row["id"]: (row["eta"], row["label_count"]) for row in saved["annotators"]}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(folder, tmp_path):
    """Two steps and two more: η, labels and margins come back to the bit, with weights, optimizer and the order of the
    rows.
    """
    straight, halves = tmp_path / "straight" / "run", tmp_path / "halves" / "run"
    every_two = {"trainer__dpo__val_check_interval": 2, "trainer__dpo__save_interval": 2}
    run_ranks(EXAMPLE, 1, *recipe(folder, straight, **every_two), timeout=600)
    run_ranks(EXAMPLE, 1, *recipe(folder, halves, **every_two, trainer__dpo__max_steps=2), timeout=600)
    first = reliabilities(halves)
    run_ranks(EXAMPLE, 1, *recipe(folder, halves, **every_two), timeout=600)
    assert first != reliabilities(halves) == reliabilities(straight)
    assert sum(labels for _, labels in reliabilities(halves).values()) == world.GLOBAL_BATCH * world.STEPS
    margins = [np.load(run / MARGINS_FILE) for run in (straight, halves)]
    np.testing.assert_array_equal(*margins)
    assert margins[0].shape == (world.GLOBAL_BATCH * world.STEPS,) and np.isfinite(margins[0]).all()


def test_a_row_without_an_annotator_is_one_line(folder, tmp_path):
    made = world.rows(world.GLOBAL_BATCH, seed=6)
    del made[3]["annotator"]
    world.tiny_world.write_rows(tmp_path / "train.jsonl", made)
    arguments = recipe(folder, tmp_path / "run")
    arguments += [f"model.data.data_prefix.train=[{tmp_path / 'train.jsonl'}]"]
    done = run_ranks(EXAMPLE, 1, *arguments, timeout=600, check=False)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        f"error: {tmp_path / 'train.jsonl'}:4: the row has no field 'annotator'; it has prompt, chosen_response, "
        "rejected_response. Set model.rpo.annotator_key to the field with the annotator, or to null if there is none"
    ]
    assert not (tmp_path / "run").exists()


def test_the_recipe_beside_the_example_builds_on_nemo_aligners(folder, tmp_path):
    """``conf/gpt_rpo.yaml`` finds gpt_dpo.yaml, and an unknown setting is one line, by which all others are known."""
    recipe(folder, tmp_path / "run")
    own = ["--config-path", str(ROOT / "examples" / "nemo_aligner" / "conf"), "--config-name", "gpt_rpo"]
    place = f"hydra.searchpath=[file://{tmp_path}]"
    done = run_ranks(EXAMPLE, 1, *own, place, "+model.rpo.alpa=0.1", timeout=600, check=False)
    assert "error: unknown key model.rpo.alpa; did you mean 'alpha'?" in done.stderr.splitlines()
