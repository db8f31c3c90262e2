"""A run that was stopped anywhere ends where the unbroken run ends: to the bit, or to 1e-5 on other ranks."""

from __future__ import annotations

import csv
import json
import math
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from nemo_rpo.em import BufferSettings, EMSettings, Votes, estimate
from nemo_rpo.training.logs.metrics import read_metrics
from nemo_rpo.training.process.stop import STOPPED_EARLY

from .runs import STEPS, STEPS_PER_EPOCH, World, checkpoints, step, steps_done, tensors

pytestmark = pytest.mark.distributed

LAST = Path("checkpoints") / step(STEPS)
EXPORT = Path("hf") / "model.safetensors"
ETA = "annotators.csv"
RECORD = ("posteriors.parquet", "annotators.parquet", "validation.parquet")


def assert_same_end(resumed: Path, unbroken: Path, scratch: Path) -> None:
    """Weights, optimizer, η, metrics and what is kept of them, bit for bit."""
    assert (resumed / EXPORT).read_bytes() == (unbroken / EXPORT).read_bytes()
    assert (resumed / ETA).read_bytes() == (unbroken / ETA).read_bytes()
    for name in RECORD:
        assert parquet.read_table(resumed / name).equals(parquet.read_table(unbroken / name)), name
    assert read_metrics(resumed, timing=False) == read_metrics(unbroken, timing=False)
    # The checkpoint of a stop has the same measurement as the next one of the schedule, and comes first.
    measured, expected = (
        [run_of(run / "checkpoints" / name)["metrics"] for name in checkpoints(run)] for run in (resumed, unbroken)
    )
    assert measured == expected and checkpoints(resumed)[-1] == checkpoints(unbroken)[-1]
    for name in set(checkpoints(resumed)) & set(checkpoints(unbroken)):
        ours, theirs = (run / "checkpoints" / name for run in (resumed, unbroken))
        assert run_of(ours) == run_of(theirs)
        assert_equal(tensors(ours, scratch), tensors(theirs, scratch))


def run_of(checkpoint: Path) -> dict[str, Any]:
    """``run.json`` without the digests: files with the same tensors need not have the same bytes."""
    run = json.loads((checkpoint / "run.json").read_text())
    return {**run, "files": sorted(run["files"]), "digest": ""}


def assert_equal(ours: object, theirs: object, where: str = "") -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, list):
        assert_equal(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}")
    else:
        assert ours == theirs, where


def test_killed_between_checkpoints(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Before the first checkpoint; after steps that the next start must undo; after the sweep that ends an epoch."""
    out = tmp_path / "run"
    for stop in (1, 5, STEPS_PER_EPOCH + 1):
        run = world.start(out)
        run.wait_for_step(stop)
        run.kill()
        assert steps_done(out) < STEPS
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)


def whole(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step=*"))


def test_killed_while_a_checkpoint_is_written(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Between its files, before it gets its name, while an older one is dropped; and before the export is whole.

    What carries a final name is whole, and no step that was saved is lost.
    """
    out = tmp_path / "run"
    for moment in (
        f"open .writing-{step(2)}/__0_1.distcp",
        f"open .writing-{step(4)}/run.json",
        f"os.rename .writing-{step(4)}",
        f"shutil.rmtree .writing-dropped-{step(2)}",
        "os.rename .hf.partial",
    ):
        before = whole(out)
        assert world.train(out, stop_at=f"kill {moment}", check=False).returncode == -signal.SIGKILL
        assert before[-1:] <= whole(out)[-1:] and not (out / "hf").exists()
        assert all((out / "checkpoints" / name / "annotators.jsonl").exists() for name in whole(out))
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)


def test_a_full_disk_leaves_what_was_whole(world: World, unbroken: Path, tmp_path: Path) -> None:
    """A file that may not grow stands for it: the write fails in the midst, and names its checkpoint."""
    out = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    result = world.train(out, check=False, before=limit)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: the checkpoint {out}/checkpoints/.writing-{step(2)} cannot be written (")
    assert last.endswith("see that its disk has room and start again") and "Traceback" not in result.stderr
    assert checkpoints(out) == []
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)


def test_stopped_by_its_time_limit(world: World, unbroken: Path, tmp_path: Path) -> None:
    """A limit of a second is over at the first step; the run saves there, says so, and ends with status 75.

    (A fork would be further by then: it has nothing to import.)
    """
    out = tmp_path / "run"
    for done in (1, 2):
        stopped = world.train(out, "exp_manager.max_time_per_run='00:00:00:01'", check=False, forked=False)
        assert stopped.returncode == STOPPED_EARLY
        assert f"stopped at step {done}: exp_manager.max_time_per_run is nearly over" in stopped.stderr
        assert step(done) in checkpoints(out) and not (out / "hf").exists()
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)


def test_two_ranks_stopped_by_ctrl_c_and_by_kill(world: World, tmp_path: Path) -> None:
    """Two data-parallel ranks, each with its half of the optimizer, stopped while a checkpoint is written."""
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    world.train(unbroken, ranks=2)
    interrupted = world.train(out, stop_at=f"interrupt os.rename .writing-{step(4)}", ranks=2, check=False)
    assert interrupted.returncode == STOPPED_EARLY and "Traceback" not in interrupted.stderr
    said = interrupted.stderr.splitlines()[-1]
    assert said.startswith("stopped at step 5: SIGINT asks for it; start again to go on: nemo-rpo train --config-name ")
    assert said.endswith(f"exp_manager.explicit_log_dir={out} (status 75)")
    assert whole(out)[-2:] == [step(4), step(5)]  # it came too late for the step before
    killed = world.train(out, stop_at=f"kill open .writing-{step(6)}/__1_0.distcp", ranks=2, check=False)
    assert (killed.returncode, killed.stderr.splitlines()[-1]) == (128 + 9, "error: rank 1 was ended by SIGKILL")
    world.train(out, ranks=2)
    assert_same_end(out, unbroken, tmp_path)


def test_the_margin_buffer_is_resumed(world: World, tmp_path: Path) -> None:
    """Reliabilities that are refitted every two steps from all margins so far: to the bit, and on two ranks."""
    buffer = [
        f"model.rpo.{setting}"
        for setting in ("estimator=buffer", "sweep=none", "buffer.min_information=0", "buffer.min_gain=-1e9")
    ]
    buffer += ["model.rpo.buffer.refit_every=2", "model.rpo.buffer.margins=latest"]
    unbroken, out, other = tmp_path / "unbroken", tmp_path / "run", tmp_path / "other"
    world.train(unbroken, *buffer)
    refits = [row for row in read_metrics(unbroken) if row["split"] == "refit"]
    assert [row["step"] for row in refits] == [2, 4, 6, 8, 10, 12]
    assert len({row["em/eta_mean"] for row in refits}) == len(refits)
    assert etas(unbroken) == pytest.approx(refit_of_the_record(unbroken), abs=1e-4)
    killed = world.train(out, *buffer, stop_at=f"kill os.rename .writing-{step(8)}", check=False)
    assert killed.returncode == -signal.SIGKILL and whole(out)[-1] == step(6)
    shutil.copytree(out, other)
    world.train(out, *buffer)
    assert_same_end(out, unbroken, tmp_path)
    world.train(other, *buffer, ranks=2)
    assert etas(other) == pytest.approx(etas(unbroken), abs=1e-5)
    assert_close_records(other, unbroken)


def test_the_label_model_is_resumed(world: World, tmp_path: Path) -> None:
    """Data that know the order shown, and annotators who follow it: coefficients and evidence by pair, to the bit."""
    rows = [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]
    data = tmp_path / "train.jsonl"
    shown = ({**row, "shown_first": "chosen" if i % 12 else "rejected"} for i, row in enumerate(rows))
    data.write_text("".join(json.dumps(row) + "\n" for row in shown))
    settings = [f"model.data.data_prefix.train=[{data}]", "trainer.dpo.max_steps=6", "trainer.dpo.val_check_interval=6"]
    settings += ["model.rpo.estimator=buffer", "model.rpo.buffer.refit_every=2", "model.rpo.sweep=end"]
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    said = world.train(unbroken, *settings).stderr
    assert said.count("label model: slot: taken (log Bayes factor +") == 1
    with (unbroken / ETA).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert all(float(row["slot"]) > 1 and float(row["slot_error"]) > 0 and float(row["skill"]) for row in table)
    choice = json.loads((unbroken / "label_model.json").read_text())
    assert choice["features"] == ["skill", "slot"] and choice["reasons"][0].startswith("slot: taken")
    labels = parquet.read_table(unbroken / RECORD[0]).to_pydict()
    against = np.array([row["shown_first"] == "rejected" for row in map(json.loads, data.read_text().splitlines())])
    assert np.mean(np.array(labels["w_last"])[against]) > np.mean(np.array(labels["w_last"])[~against]) + 0.1
    killed = world.train(out, *settings, stop_at=f"kill os.rename .writing-{step(6)}", check=False)
    assert killed.returncode == -signal.SIGKILL and whole(out)[-1] == step(4)
    world.train(out, *settings)
    assert_same_end(out, unbroken, tmp_path)
    assert json.loads((out / "label_model.json").read_text()) == choice


def refit_of_the_record(run: Path) -> dict[str, float]:
    """One full fit of the margins in the record of a ``run``, in this process, from η as its last step began with it:
    what the tests of the hosts compare with.
    """
    labels, annotators = (parquet.read_table(run / name).to_pydict() for name in RECORD[:2])
    votes = Votes.single(torch.tensor([annotators["id"].index(name) for name in labels["annotator"]]))
    start = torch.tensor(annotators["trajectory_eta"], dtype=torch.float64)[:, -2]
    settings = EMSettings(buffer=BufferSettings(min_information=0.0, min_gain=-1e9))
    found = estimate(torch.tensor(labels["delta_last"]), votes, start, settings)
    return dict(zip(annotators["id"], found.eta.tolist(), strict=True))


def assert_close_records(out: Path, wanted: Path) -> None:
    """Every label, annotator and held-out pair in the same order, floats within 1e-5."""
    for name in RECORD:
        ours, theirs = (parquet.read_table(run / name).to_pylist() for run in (out, wanted))
        assert len(ours) == len(theirs) > 0
        for row, expected in zip(ours, theirs, strict=True):
            assert row.keys() == expected.keys()
            for column, value in expected.items():
                floats = isinstance(value, float) or column == "trajectory_eta"
                assert row[column] == (pytest.approx(value, abs=1e-5) if floats else value), (name, column)


def etas(out: Path) -> dict[str, float]:
    with (out / ETA).open(newline="") as file:
        return {row["id"]: float(row["eta"]) for row in csv.DictReader(file)}


def test_resumed_under_other_layouts(world: World, unbroken: Path, tmp_path: Path) -> None:
    """TP 2 × PP 2, then DP 2, then one rank: the steps of one run, within 1e-5 of those of one rank all the way."""
    out = tmp_path / "run"
    every = "exp_manager.checkpoint_callback_params.save_top_k=100"
    four = ("model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2")
    run = world.start(out, *four, every, ranks=4)
    run.wait_for_step(3)
    run.kill()
    run = world.start(out, every, ranks=2)
    run.wait_for_step(STEPS_PER_EPOCH + 1)
    run.kill()
    layouts = [json.loads(path.read_text())["layout"] for path in sorted((out / "checkpoints").glob("step=*/run.json"))]
    assert layouts[0]["pipeline_model_parallel_size"] == 2 and layouts[-1]["data_parallel_size"] == 2
    world.train(out)

    rows, expected = read_metrics(out, timing=False), read_metrics(unbroken, timing=False)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row.pop("split") == wanted.pop("split")
        assert row == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert_close_records(out, unbroken)
    ours, theirs = tensors(out / LAST, tmp_path), tensors(unbroken / LAST, tmp_path)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}"
        )


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and change of every file that a finished run has no reason to touch."""
    files = [path for name in ("checkpoints", "hf") for path in (out / name).rglob("*")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_finished_run_only_reports(world: World, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    before = stamps(out)
    stderr = world.train(out).stderr
    assert f"resumed from {out / LAST}" in stderr and "Files written" in stderr
    assert stamps(out) == before
    assert_same_end(out, unbroken, tmp_path)


def test_a_finish_that_was_cut_short_is_made_up_for(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Killed after the last checkpoint: no export yet, and the table of the checkpoint before."""
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "hf")
    for name in (ETA, *RECORD):
        (out / name).unlink()
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)


def test_a_longer_run_replaces_the_export(world: World, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    world.train(out, "trainer.dpo.max_epochs=3")
    assert steps_done(out) == STEPS + STEPS_PER_EPOCH
    assert (out / EXPORT).read_bytes() != (unbroken / EXPORT).read_bytes()


def test_the_best_and_the_last_are_kept(unbroken: Path) -> None:
    """``save_top_k=2`` of ``val_acc``, as of the last validation before each checkpoint, and the last one."""
    losses = {row["step"]: -row["acc"] for row in read_metrics(unbroken) if row["split"] == "val"}
    kept: list[int] = []
    for saved in range(2, STEPS + 1, 2):
        measured = {at: losses.get(at - at % 3, float("inf")) for at in [*kept, saved]}
        best = sorted(measured, key=lambda at, loss=measured: (loss[at], at))[:2]
        kept = sorted({*best, saved})
    assert checkpoints(unbroken) == [step(at) for at in kept]
    assert len(kept) == 3 and kept != [8, 10, 12]  # the settings tell "best" from "latest"


def test_a_fresh_start_puts_the_earlier_run_aside(world: World, unbroken: Path, tmp_path: Path) -> None:
    """Without resuming, the next start must not go on from checkpoints of the run before."""
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    world.train(out, "exp_manager.resume_if_exists=false", "trainer.dpo.max_steps=3", "model.rpo.enabled=false")
    assert checkpoints(out) == [step(2), step(3)]
    assert sorted(path.name for path in (out / "checkpoints.previous").iterdir()) == checkpoints(unbroken)
    assert steps_done(out) == 3 and not (out / ETA).exists()
    assert [name for name in RECORD if (out / name).exists()] == ["validation.parquet"]


def test_a_folder_is_one_jobs(world: World, tmp_path: Path) -> None:
    """A second job in the folder of a living one is refused; the first is not disturbed."""
    out = tmp_path / "run"
    first = world.start(out, "trainer.dpo.max_epochs=100000")
    first.wait_for_step(1)
    second = world.train(out, check=False)
    alive = first.process.poll() is None
    done = steps_done(out)
    first.wait_for_step(done + 1)
    first.kill()
    assert alive and second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith(f"error: another job (process {first.process.pid} on ")


def test_annotators_that_are_new_join(world: World, unbroken: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "run", tmp_path / "train.jsonl"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / LAST)
    rows = [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]
    for row in rows[:12]:
        row["annotator"] = "a00"  # sorts before those that the run knows
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    world.train(out, f"model.data.data_prefix.train={data}", "model.data.allow_new_annotators=true")
    with (out / ETA).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == ["a01", "a02", "a03", "a04", "a00"]
    assert table[-1]["labels"] == "12" and 0 < float(table[-1]["eta"]) < 1
    record = parquet.read_table(out / "annotators.parquet").to_pylist()
    way = record[-1]["trajectory_eta"]
    assert math.isnan(way[0]) and 0 < way[-1] < 1
    saved = tensors(out / LAST, tmp_path)
    assert saved["em.label_counts"].tolist()[-1] > 0  # it has been learnt from


def test_rankings_are_resumed(world: World, tmp_path: Path) -> None:
    """Rankings of two and three, their margins in the buffer, their reference in a file: to the bit."""
    rows = [json.loads(line) for line in (world.folder / "train.jsonl").read_text().splitlines()]
    made = []
    for i, row in enumerate(rows):
        further = [rows[i - 1]["rejected"]] if i % 3 else []
        responses = [row["chosen"], row["rejected"], *further]
        made.append({"prompt": row["prompt"], "responses": responses, "annotator": row["annotator"]})
    data = tmp_path / "rankings.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in made))
    settings = [f"model.data.data_prefix.train={data}", "model.rpo.base_loss=plackett_luce"]
    settings += ["model.rpo.estimator=buffer", "model.rpo.buffer.refit_every=2"]
    settings += ["model.rpo.buffer.min_information=0", "model.rpo.buffer.min_gain=-1e9"]
    settings += ["model.rpo.reference=cached", f"model.rpo.reference_cache={tmp_path}/reference"]
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    world.train(unbroken, *settings)
    world.train(out, *settings, stop_at=f"kill open .writing-{step(4)}/run.json", check=False)
    assert whole(out) == [step(2)]
    world.train(out, *settings)
    assert_same_end(out, unbroken, tmp_path)
    labels = parquet.read_table(out / "posteriors.parquet")
    assert len(labels) == sum(3 if len(row["responses"]) == 3 else 1 for row in made)
    with (out / ETA).open() as file:
        assert sum(int(row["labels"]) for row in csv.DictReader(file)) == len(made)
