"""``nemo-rpo train`` beside the real nemo-toolkit: NeMo's settings, tokenizer and loggers, and the same trajectory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.runs import STEPS, World, environment

from nemo_rpo.nemo_toolkit import SWITCH
from nemo_rpo.training.logs.metrics import read_metrics

pytestmark = pytest.mark.distributed

TENSORBOARD = "exp_manager.create_tensorboard_logger=true"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.write(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On two ranks, with what NeMo's ``exp_manager`` is asked for."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "note.txt").write_text("for the record", encoding="utf-8")
    said = world.train(folder / "run", TENSORBOARD, f"exp_manager.files_to_copy=[{folder}/note.txt]", ranks=2)
    assert "Traceback" not in said.stderr
    return folder / "run"


def train(world: World, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return world.train(out, *overrides, check=False)


def scalars(run: Path, tag: str) -> dict[int, float]:
    """Of all event files below the run's folder, as TensorBoard shows them."""
    (folder,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_the_trajectory_is_that_of_a_run_without_it(world: World, unbroken: Path, tmp_path: Path) -> None:
    own = world.train(tmp_path / "own", check=False, env={SWITCH: "own"}, forked=False)
    assert own.returncode == 0, own.stderr[-4000:]
    found, expected = (
        [row for row in read_metrics(run, timing=False) if row["split"] == "train"]
        for run in (unbroken, tmp_path / "own")
    )
    assert len(expected) == STEPS
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name in ("loss", "em/eta_mean", "em/eta_min"):
            assert row[name] == pytest.approx(other[name], abs=1e-5)
    assert not (tmp_path / "own" / "nemo").exists()


def test_exp_manager_made_the_loggers_and_keeps_its_record(unbroken: Path) -> None:
    logged = scalars(unbroken, "train/loss")
    wanted = {row["step"]: row["loss"] for row in read_metrics(unbroken) if row["split"] == "train"}
    assert logged == pytest.approx(wanted, rel=1e-6) and len(logged) == STEPS
    # Its own files, which no part of ours writes.
    assert (unbroken / "nemo" / "note.txt").read_text() == "for the record"
    assert {"cmd-args.log", "lightning_logs.txt", "hparams.yaml"} <= {
        path.name for path in (unbroken / "nemo").iterdir()
    }


def test_a_resumed_run_shows_each_step_once(world: World, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for steps in (STEPS // 2, STEPS):
        done = train(world, out, TENSORBOARD, f"trainer.dpo.max_steps={steps}", "model.optim.sched.name=constant")
        assert done.returncode == 0, done.stderr[-4000:]
    rows = [row for row in read_metrics(out) if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # exp_manager moves the files of an earlier start into run_0: what it logged is all there, each step once.
    logged = {}
    for folder in {path.parent for path in out.rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for event in events.Scalars("train/loss"):
            assert event.step not in logged
            logged[event.step] = event.value
    assert logged == pytest.approx({row["step"]: row["loss"] for row in rows}, rel=1e-6)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["exp_manager.create_dllogger_logger=true"], ["exp_manager of nemo-toolkit", "DLLogger was not found"]),
        (["exp_manager.files_to_copy=[absent.txt]"], ["exp_manager of nemo-toolkit", "absent.txt"]),
        ([TENSORBOARD, "+exp_manager.summary_writer_kwargs.colour=red"], ["exp_manager", "colour"]),
        (["model.rpo.eta_int=.9"], ["did you mean model.rpo.eta_init"]),
        (["model.rpo.prior=[1"], ["under Hydra"]),
    ],
)
def test_mistakes_are_one_line(world: World, tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    done = train(world, tmp_path / "run", *overrides)
    assert done.returncode == 2, done.stderr[-4000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line


def test_the_command_line_says_nothing_of_its_own(world: World) -> None:
    """``--help`` and ``--version`` do not wait for NeMo, which takes seconds to import."""
    code = "import sys; from nemo_rpo.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not any(name == 'nemo' or name.startswith('nemo.') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
