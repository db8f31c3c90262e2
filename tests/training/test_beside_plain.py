"""``--beside-plain``, ``evaluate --beside`` and ``--dry-run``: did it help, and what would the run be?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torchrun import run_process

from nemo_rpo.config.load import load_config
from nemo_rpo.evaluation.beside_plain import compare_runs, did_it_help
from nemo_rpo.evaluation.judgements import Comparison, Estimate

from .runs import STEPS, World, steps_done

pytestmark = pytest.mark.distributed


def test_both_runs_and_their_difference(world: World, unbroken: Path, tmp_path: Path) -> None:
    """The plain loss in a folder beside the run, which is as without; what is said of both is what evaluate says."""
    out, plain = tmp_path / "run", tmp_path / "run-plain"
    command = [part for part in world.command(out)[1:] if part != "--"]
    result = run_process([*command, "--beside-plain"], forked=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert steps_done(out) == steps_done(plain) == STEPS
    assert (out / "hf/model.safetensors").read_bytes() == (unbroken / "hf/model.safetensors").read_bytes()
    assert not load_config(str(plain / "config.yaml")).model.rpo.enabled and not (plain / "annotators.csv").exists()
    found = compare_runs(out, plain)
    assert result.stdout.startswith(did_it_help(found)) and f"{found.labels:,} labels of" in result.stdout
    data = world.folder / "validation.jsonl"
    judge = ["-m", "nemo_rpo.cli", "evaluate", str(out), str(data), "--beside", str(plain), "--json"]
    judged = json.loads(run_process(judge).stdout)["comparison"]
    assert judged["labels"] == found.labels and judged["prompts"] == found.prompts
    for name, estimate in found.differences.items():
        assert judged["differences"][name]["value"] == pytest.approx(estimate.value, abs=1e-4)
    told = run_process(["-m", "nemo_rpo.cli", "report", str(out), "--format", "markdown"])
    assert told.returncode == 0, told.stderr
    first_lines = (out / "report.md").read_text().split("## Warnings")[0]
    assert "**Did it help? " in first_lines and f"against {plain}, the plain loss" in first_lines.replace("\\", "")
    assert "nemo-rpo train --beside-plain" not in first_lines


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (Estimate(0.1, 0.02, 0.2), "It helped: +10.0% of 50 held-out labels right (+2.0% to +20.0%)"),
        (Estimate(-0.1, -0.2, -0.02), "It hurt: -10.0%"),
        (Estimate(0.1, -0.02, 0.2), "No difference can be told: +10.0%"),
    ],
)
def test_the_sentence_goes_by_the_interval(gain: Estimate, says: str) -> None:
    assert did_it_help(Comparison(50, 20, {"accuracy": gain}, 0.04, 9, 4)).startswith(says)
    few = did_it_help(Comparison(50, 4, {"accuracy": Estimate(0.1, -0.02, 0.2)}, 0.125, 9, 4))
    assert "labels are of 4 prompts" in few


def test_a_dry_run_says_what_the_run_would_be_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [part for part in world.command(out)[1:] if part != "--"]
    result = run_process([*command, "--dry-run", "model.tensor_model_parallel_size=1"])
    assert result.returncode == 0, result.stderr
    for said in (
        "TP 1 × PP 1 × CP 1 × DP 1",
        "48 pairs, 48 labels of 4 annotators",
        "12 in all, 6 an epoch",
        "GB a rank",
    ):
        assert said in result.stdout
    assert "nothing was trained" in result.stdout and not out.exists()
    tied = {"prompt": "q", "response_a": "x", "response_b": "y", "votes": [{"annotator": "w", "vote": "tie"}]}
    file = tmp_path / "tied.jsonl"
    file.write_text("".join(json.dumps({**tied, "prompt": f"q{i}"}) + "\n" for i in range(9)))
    only = run_process([*command, "--dry-run", f"model.data.data_prefix={{train: [{file}]}}"])
    assert (only.returncode, only.stderr) == (2, f"error: {file} has no label that can be trained on\n")
    refused = run_process([*command, "--dry-run", "model.global_batch_size=64"])
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: 48 pairs are no global batch of 64: lower model.global_batch_size\n",
    )
