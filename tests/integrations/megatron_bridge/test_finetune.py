"""Megatron-Bridge's real ``finetune`` beside this package's own engine, on the same weights and rows.

Bridge takes half a minute to import on a CPU, so all runs of a number of ranks share one launch.
"""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from paths import TESTS
from tiny_world import RELIABILITY, STRANGER
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
BATCH, STEPS = 16, 4
TP2, PP2 = {"model.tensor_model_parallel_size": 2}, {"model.pipeline_model_parallel_size": 2}
SHARDED = {f"{section}.use_distributed_optimizer": True for section in ("ddp", "optimizer")}
OVERLAPPED = {"ddp.overlap_grad_reduce": True, "ddp.overlap_param_gather": True}
VALIDATED = {"validation.eval_interval": 1, "validation.eval_iters": 2}  # 21 pairs, in two batches
BOTH = {"data_prefix": {"train": "train.jsonl", "validation": "validation.jsonl"}}
EXPORTED = {"checkpoint.also_save_hf_checkpoint": True}
EMA = {"estimator": "ema"}
# One refit in the course of a run, after the checkpoint that it is resumed from, and one at its end.
BUFFER = {"buffer": {"refit_every": 3, "min_information": 0.0, "min_gain": -1e9}}

ON_ONE: dict[str, dict[str, Any]] = {
    "one": {"folder": "unbroken"},
    "replayed": {"config": {"rerun_state_machine.rerun_mode": "report_determinism_stats"}},
    "stopped": {"steps": 2, "folder": "continued", "config": EXPORTED},
    "resumed": {"folder": "continued"},
    "stopped for TP=2": {"steps": 2, "folder": "spread"},
    "skipped": {"skipped": 1},
    "watched": {"config": VALIDATED, "data": BOTH},
    "resident": {"rpo": {"reference": "resident"} | EMA, "steps": 2},
    "one annotator": {"rpo": {"annotator_key": None} | EMA, "steps": 1},
    "newcomer": {"folder": "continued", "steps": 5, "data": {"data_prefix": {"train": "newcomer.jsonl"}}},
    "nameless": {"data": {"data_prefix": {"train": "nameless.jsonl"}}},
    "misspelt": {"rpo": {"annotator_key": "anotator"}},
    "without start": {"folder": "continued", "steps": 5, "config": {"checkpoint.pretrained_checkpoint": None}},
    "own manager": {"config": {"checkpoint.custom_manager_class": None}},
    "buffer": {"folder": "buffer", "rpo": BUFFER},
    "buffer, stopped": {"steps": 2, "folder": "buffer continued", "rpo": BUFFER},
    "buffer, resumed": {"folder": "buffer continued", "rpo": BUFFER},
    "buffer, stopped for DP=2": {"steps": 2, "folder": "buffer spread", "rpo": BUFFER},
    "buffer, replayed": {"config": {"rerun_state_machine.rerun_mode": "report_determinism_stats"}, "rpo": BUFFER},
    "buffer, skipped": {"skipped": 1, "rpo": BUFFER},
    "buffer, other pairs": {
        "folder": "buffer continued",
        "steps": 5,
        "data": {"data_prefix": {"train": "newcomer.jsonl"}},
        "rpo": BUFFER | {"allow_new_annotators": True},
    },
}
ON_TWO: dict[str, dict[str, Any]] = {
    "TP=2": {"config": TP2},
    "PP=2": {"config": PP2 | VALIDATED, "data": BOTH},
    "DP=2": {"config": SHARDED | OVERLAPPED | VALIDATED, "data": BOTH},
    "resumed at TP=2": {"folder": "spread", "config": TP2},
    "buffer, PP=2": {"config": PP2, "rpo": BUFFER},
    "buffer, DP=2": {"config": SHARDED | OVERLAPPED, "rpo": BUFFER},
    "buffer, resumed at DP=2": {"folder": "buffer spread", "rpo": BUFFER},
    "PP=2, fixed lengths": {"config": PP2 | {"model.variable_seq_lengths": False}},
}


@pytest.fixture(scope="module")
def rows(world: Path) -> Path:
    """The world, with a file in which a pair is by somebody new, and one in which a pair is by nobody."""
    lines = (world / "train.jsonl").read_text().splitlines()
    for name, annotator in (("newcomer", "0 new"), ("nameless", None)):
        row = json.loads(lines[40])
        row["votes"][0]["annotator"] = annotator
        (world / f"{name}.jsonl").write_text("\n".join([*lines[:40], json.dumps(row), *lines[41:]]) + "\n")
    return world


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def on_one(rows: Path, out: Path) -> dict[str, Any]:
    run_ranks(HERE / "ranks_bridge.py", 1, rows, out, json.dumps(ON_ONE), timeout=590)
    return {name: json.loads((out / f"{name}.0.json").read_text()) for name in ON_ONE}


@pytest.fixture(scope="module")
def on_two(rows: Path, out: Path, on_one: dict[str, Any]) -> dict[str, list[Any]]:
    run_ranks(HERE / "ranks_bridge.py", 2, rows, out, json.dumps(ON_TWO), timeout=590)
    return {name: [json.loads((out / f"{name}.{rank}.json").read_text()) for rank in range(2)] for name in ON_TWO}


@pytest.fixture(scope="module")
def engine_runs(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Loss and η of every step of this package's own engine on one rank, under both estimators, and the η that a run
    with the margin buffer ends with.
    """
    folder = tmp_path_factory.mktemp("engine")
    constant = ["model.optim.sched.name=constant", "model.optim.sched.warmup_steps=0", f"trainer.dpo.max_steps={STEPS}"]
    buffer = ["model.rpo.estimator=buffer", *(f"model.rpo.buffer.{key}={of}" for key, of in BUFFER["buffer"].items())]
    runs = {"ema": constant, "buffer": constant + buffer}
    run_ranks(TESTS / "megatron" / "ranks_trajectory.py", 1, rows, folder, json.dumps(runs), timeout=300)
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in runs}
    with (folder / "runs" / "buffer" / "annotators.csv").open(newline="") as file:
        return found | {"settled": [float(row["eta"]) for row in csv.DictReader(file)]}


@pytest.fixture(scope="module")
def engine(engine_runs: dict[str, Any]) -> list[dict[str, Any]]:
    return engine_runs["ema"]


def losses(found: dict[str, Any]) -> list[float]:
    return [step["loss"] for step in found["steps"]]


def etas(found: dict[str, Any]) -> list[list[float]]:
    return [step["eta"] for step in found["steps"]]


def assert_is_the_engines(found: dict[str, Any], engine: list[dict[str, Any]], losses_here: bool = True) -> None:
    if losses_here:
        assert losses(found) == pytest.approx([step["loss"] for step in engine], abs=1e-5)
    for ours, theirs in zip(etas(found), engine, strict=True):
        assert ours == pytest.approx(theirs["eta"], abs=1e-5)
    assert found["annotators"] == sorted(RELIABILITY)


def test_one_rank_is_the_engine(on_one, engine):
    assert_is_the_engines(on_one["one"], engine)
    first = on_one["one"]["steps"][0]
    assert first["margin"] == first["em/abs_delta_mean"] == 0.0  # the reference is the policy's starting point
    assert len({tuple(eta) for eta in etas(on_one["one"])}) == STEPS


@pytest.mark.parametrize("layout", ["TP=2", "PP=2", "DP=2"])
def test_every_layout_is_the_engine(on_two, engine, layout):
    for rank, found in enumerate(on_two[layout]):
        assert_is_the_engines(found, engine, losses_here=layout != "PP=2" or rank == 1)
    assert etas(on_two[layout][0]) == etas(on_two[layout][1])


def test_a_resumed_run_is_the_unbroken_one(on_one):
    assert losses(on_one["stopped"]) + losses(on_one["resumed"]) == losses(on_one["one"])
    assert etas(on_one["stopped"]) + etas(on_one["resumed"]) == etas(on_one["one"])
    assert on_one["resumed"]["steps"][-1]["label_counts"] == on_one["one"]["steps"][-1]["label_counts"]


def test_a_run_is_resumed_on_other_ranks(on_one, on_two):
    for found in on_two["resumed at TP=2"]:
        whole = losses(on_one["stopped for TP=2"]) + losses(found)
        assert whole == pytest.approx(losses(on_one["one"]), abs=1e-5)
        for ours, theirs in zip(etas(found), etas(on_one["one"])[2:], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_replayed_pass_counts_once(on_one):
    assert etas(on_one["replayed"]) == etas(on_one["one"])
    assert [s["label_counts"] for s in on_one["replayed"]["steps"]] == [
        s["label_counts"] for s in on_one["one"]["steps"]
    ]


def test_a_skipped_iteration_moves_no_eta(on_one):
    first, second, third, _ = on_one["skipped"]["steps"]
    assert [first["skipped"], second["skipped"], third["skipped"]] == [False, True, False]
    assert (second["eta"], second["em_step"]) == (first["eta"], 1)
    assert third["em_step"] == 2 and third["eta"] != second["eta"]
    assert second["loss"] == on_one["one"]["steps"][1]["loss"]


def test_evaluation_moves_nothing(on_one, on_two, rows):
    watched = on_one["watched"]
    assert etas(watched) == etas(on_one["one"]) and losses(watched) == losses(on_one["one"])
    assert [found["eta"] for found in watched["validation"][:STEPS]] == etas(watched)
    for layout in ("PP=2", "DP=2"):
        seen = [found["loss"] for found in on_two[layout][1]["validation"]]
        assert seen == pytest.approx([found["loss"] for found in watched["validation"]], abs=1e-5)


@pytest.mark.parametrize("layout", ["buffer", "buffer, PP=2", "buffer, DP=2"])
def test_the_margin_buffer_is_the_engines(on_one, on_two, engine_runs, layout):
    steps = engine_runs["buffer"]
    for rank, found in enumerate(on_two[layout] if layout in ON_TWO else [on_one[layout]]):
        for ours, theirs in zip(etas(found), steps, strict=True):
            assert ours == pytest.approx(theirs["eta"], abs=1e-4)
        assert found["settled"] == pytest.approx(engine_runs["settled"], abs=1e-4)
        if layout != "buffer, PP=2" or rank == 1:
            assert losses(found) == pytest.approx([step["loss"] for step in steps], abs=1e-5)
        assert found["margins"] == pytest.approx(on_one["buffer"]["margins"], abs=1e-4, nan_ok=True)
    start, *_, third, last = etas(on_one["buffer"])
    assert set(start) == {0.9} and third == last != start  # a refit after the third step, and one at the end
    assert on_one["buffer"]["settled"] != last
    seen = [margin for margin in on_one["buffer"]["margins"] if not math.isnan(margin)]
    assert len(seen) == STEPS * BATCH


def test_a_run_with_the_buffer_is_resumed_exactly(on_one, on_two):
    whole = etas(on_one["buffer, stopped"]) + etas(on_one["buffer, resumed"])
    assert whole == etas(on_one["buffer"])
    assert losses(on_one["buffer, stopped"]) + losses(on_one["buffer, resumed"]) == losses(on_one["buffer"])
    for name in ("settled", "margins"):
        assert str(on_one["buffer, resumed"][name]) == str(on_one["buffer"][name])  # NaN too
    for found in on_two["buffer, resumed at DP=2"]:
        assert found["settled"] == pytest.approx(on_one["buffer"]["settled"], abs=1e-4)
        assert found["margins"] == pytest.approx(on_one["buffer"]["margins"], abs=1e-4, nan_ok=True)


def test_the_buffer_keeps_what_counts_and_once(on_one):
    replayed, whole = on_one["buffer, replayed"], on_one["buffer"]
    assert (etas(replayed), str(replayed["margins"])) == (etas(whole), str(whole["margins"]))
    skipped = on_one["buffer, skipped"]
    assert [step["em_step"] for step in skipped["steps"]] == [1, 1, 2, 3]
    unseen = sum(map(math.isnan, skipped["margins"]))
    assert unseen == BATCH + sum(map(math.isnan, whole["margins"]))


def test_a_resident_reference_is_the_swapped_one(on_one):
    assert losses(on_one["resident"]) == losses(on_one["one"])[:2]


def test_the_state_lies_beside_the_weights_for_people(on_one, out):
    state = json.loads((out / "unbroken" / "iter_0000004" / "rpo_state.json").read_text())
    assert [row["eta"] for row in state["annotators"]] == etas(on_one["one"])[-1]
    assert [row["id"] for row in state["annotators"]] == sorted(RELIABILITY)
    settled = json.loads((out / "buffer" / "rpo_state.json").read_text())
    assert [row["eta"] for row in settled["annotators"]] == on_one["buffer"]["settled"]


def test_bridge_exports_the_weights_of_a_run(on_one, out):
    assert list((out / "continued" / "iter_0000002").rglob("*.safetensors"))


def test_data_without_ids_have_one_annotator(on_one):
    [found] = on_one["one annotator"]["steps"]
    assert on_one["one annotator"]["annotators"] == ["all"]
    assert len(found["eta"]) == 1 and found["label_counts"][0] >= BATCH


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("newcomer", r"newcomer\.jsonl:41: annotator '0 new' .*rpo\.allow_new_annotators"),
        ("nameless", r"nameless\.jsonl:41: the row names no annotator in its field 'annotator'.*rpo\.annotator_key"),
        ("misspelt", r"train\.jsonl:1: field .*anotator' is missing"),
        ("without start", r"checkpoint\.pretrained_checkpoint"),
        ("own manager", r"checkpoint\.custom_manager_class"),
        ("buffer, other pairs", r"margins are of other pairs"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(on_one, run, says):
    error = on_one[run]["error"]
    assert re.search(says, error) and "\n" not in error


def test_a_pipeline_needs_variable_lengths(on_two):
    for found in on_two["PP=2, fixed lengths"]:
        assert "model.variable_seq_lengths must be true" in found["error"]


def test_strangers_are_in_the_validation_data(world):
    assert STRANGER in (world / "validation.jsonl").read_text()
