"""What a run leaves: the files it names, the field's metric names, and a policy that transformers reads alike."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from nemo_rpo.cli import main
from nemo_rpo.training.logs.metrics import read_metrics

from .runs import STEPS, World, step

pytestmark = pytest.mark.distributed

DPO_METRICS = {
    "loss", "preference_loss", "sft_loss", "acc", "margin", "logps_chosen_mean", "logps_rejected_mean",
    "rewards_chosen_mean", "rewards_rejected_mean", "rewards_all_mean", "rewards_all_std",
}  # fmt: skip
STEP_METRICS = {"grad_norm", "lr", "epoch", "consumed_samples", "time/step_s", "time/pairs_per_s", "time/tokens_per_s"}
STEP_METRICS |= {"time/tflops_per_device", "memory/peak_gib"}
EM_METRICS = {"em/eta_mean", "em/eta_min", "em/posterior_mean", "em/frac_flipped", "em/abs_delta_mean"}


@pytest.fixture(scope="module")
def re_dpo(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("outputs") / "re_dpo"
    profile = ["enabled=true", "start_step=3", "end_step=4", "gen_shape=true"]
    settings = ["trainer.deterministic=true", *(f"model.torch_profile.{setting}" for setting in profile)]
    return out, world.train(out, "exp_manager.create_tensorboard_logger=true", *settings, forked=False)


def files_named(stderr: str) -> list[Path]:
    _, _, named = stderr.partition("Files written\n")
    return [Path(line.strip()) for line in named.partition("\n\n")[0].splitlines()]


def test_every_file_of_the_report_is_there(re_dpo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, result = re_dpo
    named = files_named(result.stderr)
    relative = {str(path.relative_to(out)) for path in named}
    written = {"config.yaml", "metrics.jsonl", "tensorboard", "annotators.csv", f"checkpoints/{step(STEPS)}", "hf"}
    written |= {"annotators.parquet", "posteriors.parquet", "validation.parquet"}
    assert relative == written
    assert all(path.exists() for path in named)
    assert {path.name for path in out.iterdir()} == {name.split("/")[0] for name in written} | {".lock", "profile"}
    assert result.stdout == ""  # all of it is for a person; a pipe stays clean


def test_the_trace_holds_the_profiled_steps(re_dpo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Two optimizer steps of six, with the shapes of their operands."""
    (file,) = (re_dpo[0] / "profile").iterdir()
    events = json.loads(file.read_text())["traceEvents"]
    steps = [event for event in events if event.get("name") == "Optimizer.step#TorchFusedAdam.step"]
    assert file.name == "rank0.json" and len(steps) == 2
    assert any("Input Dims" in event.get("args", {}) for event in events)


def test_metric_names(re_dpo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    rows = read_metrics(re_dpo[0])
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == list(range(1, STEPS + 1))
    for row in train:
        assert DPO_METRICS | STEP_METRICS | EM_METRICS <= row.keys()
        assert all(math.isfinite(value) for name, value in row.items() if name != "split")
    for row in rows:
        if row["split"] == "val":
            assert DPO_METRICS <= row.keys() and "grad_norm" not in row
    assert train[0]["margin"] == 0 and train[0]["loss"] == pytest.approx(math.log(2))
    assert [row["step"] for row in rows if row["split"] == "sweep"] == [STEPS // 2, STEPS]


def test_tensorboard_has_the_same_figures(re_dpo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(re_dpo[0] / "tensorboard"))
    events.Reload()
    for split, name in (("train", "loss"), ("train", "em/eta_min"), ("val", "acc"), ("sweep", "em/eta_mean")):
        rows = [row for row in read_metrics(re_dpo[0]) if row["split"] == split]
        seen = [(event.step, event.value) for event in events.Scalars(f"{split}/{name}")]
        assert [at for at, _ in seen] == [row["step"] for row in rows]
        assert [value for _, value in seen] == pytest.approx([row[name] for row in rows])
    shown = events.Histograms("annotators/eta")
    assert shown[-1].step == STEPS and shown[-1].histogram_value.num == 4
    [table] = [event for event in events.Tensors("annotators/table/text_summary") if event.step == STEPS]
    assert all(f"a0{k}" in table.tensor_proto.string_val[0].decode() for k in (1, 2, 3, 4))


def test_annotators(world: World, re_dpo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, result = re_dpo
    with (out / "annotators.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]
    ids = [row["annotator"] for row in rows]
    assert {row["id"]: int(row["labels"]) for row in table} == {name: ids.count(name) for name in ids}
    last = [row for row in read_metrics(out) if row["split"] == "sweep"][-1]
    etas = [float(row["eta"]) for row in table]
    assert sum(etas) / len(etas) == pytest.approx(last["em/eta_mean"], abs=1e-6)
    assert min(etas) == pytest.approx(last["em/eta_min"], abs=1e-6)
    # A dozen labels: uncertain, and less so than the prior alone.
    assert all(0.02 < float(row["standard_error"]) < 0.2 for row in table)
    assert all(f"{row['id']:9}  " in result.stderr for row in table)


def response_logprob(model: torch.nn.Module, prompt: list[int], response: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].sum().item()


@torch.no_grad()
def test_transformers_gives_the_same_log_probs(
    world: World, re_dpo: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    """The last validation, done again with the exported folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = re_dpo[0] / "hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    sums = {"chosen": 0.0, "rejected": 0.0}
    lines = (world.folder / "validation.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        prompt = tokenizer(row["prompt"])["input_ids"]
        for side in sums:
            response = tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            sums[side] += response_logprob(model, prompt, response)
    last = [row for row in read_metrics(re_dpo[0]) if row["split"] == "val"][-1]
    assert last["step"] == STEPS
    for side, total in sums.items():
        assert total / len(lines) == pytest.approx(last[f"logps_{side}_mean"], abs=1e-4)


def test_plain_dpo_believes_every_label(world: World, tmp_path: Path) -> None:
    """No annotators, no reliabilities, no sweep; no validation data and no export when not wanted."""
    out = tmp_path / "dpo"
    alone = "~model.data.data_prefix.validation"
    no_export = "exp_manager.checkpoint_callback_params.save_hf_on_train_end=false"
    result = world.train(out, "model.rpo.enabled=false", alone, no_export)
    assert files_named(result.stderr) == [
        out / "config.yaml", out / "metrics.jsonl", out / "checkpoints" / step(STEPS)
    ]  # fmt: skip
    assert not (out / "annotators.csv").exists() and not (out / "hf").exists()
    assert "reliability" not in result.stderr
    rows = read_metrics(out)
    assert {row["split"] for row in rows} == {"train"}
    for row in rows:
        assert DPO_METRICS | STEP_METRICS <= row.keys()
        assert not {"em/eta_mean", "em/eta_min"} & row.keys()


def test_named_validation_sets(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Each set has the figures that it has alone, under its name; any of them may choose the best checkpoint."""
    out, files = tmp_path / "named", {name: world.folder / f"{name}.jsonl" for name in ("train", "validation")}
    named = f"{{seen: {files['train']}, held_out: [{files['validation']}]}}"
    monitor = "exp_manager.checkpoint_callback_params.monitor"
    result = world.train(out, f"model.data.data_prefix.validation={named}", f"{monitor}=val/held_out_loss")
    rows, alone = read_metrics(out, timing=False), read_metrics(unbroken, timing=False)
    assert [row | {"split": "val"} for row in rows if row["split"] == "val/held_out"] == [
        row for row in alone if row["split"] == "val"
    ]
    seen = [row["loss"] for row in rows if row["split"] == "val/seen"]
    assert len(seen) == 4 and seen != [row["loss"] for row in rows if row["split"] == "val/held_out"]
    saved = json.loads((out / "checkpoints" / step(STEPS) / "run.json").read_text())["metrics"]
    assert saved["val_loss"] == saved["val/seen_loss"] == seen[-1] != saved["val/held_out_loss"]
    assert "validation held_out at step" in result.stderr and "validation seen, step" in result.stderr
    table = parquet.read_table(out / "validation.parquet").to_pydict()
    held = [name == "held_out" for name in table["set"]]
    whole = parquet.read_table(unbroken / "validation.parquet").to_pydict()
    for name in whole:
        assert [value for value, mine in zip(table[name], held, strict=True) if mine] == whole[name]
    refused = world.train(out, f"model.data.data_prefix.validation={named}", f"{monitor}=val/none_loss", check=False)
    assert refused.returncode == 2 and "val/held_out_loss, " in refused.stderr.splitlines()[-1]
    assert main(["report", str(out), "--out", str(tmp_path), "--format", "markdown"]) == 0
    text = (tmp_path / "report.md").read_text().replace("\\", "")  # Markdown escapes the underscore
    assert "held out, set held_out" in text and "held out, set seen" in text
