"""Ctrl-C and SIGTERM: the first one saves after the step that is under way, the second one ends the run at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemo_rpo.training.process.stop import STOPPED_EARLY

from .runs import STEPS, Run, World, checkpoints, environment, step, steps_done
from .test_resume import assert_same_end

pytestmark = pytest.mark.distributed
AT_ONCE_S = 10  # less than the saboteur's sleep


def send(run: Run, number: signal.Signals) -> None:
    psutil.Process(run.process.pid).send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_saves_and_says_how_to_go_on(
    world: World, unbroken: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    run = world.start(out)
    run.wait_for_step(1)
    send(run, number)
    assert run.process.wait(60) == STOPPED_EARLY, run.log.read_text()
    done, said = steps_done(out), run.log.read_text()
    assert done < STEPS and step(done) in checkpoints(out) and not (out / "hf").exists()
    assert f"{number.name}: the run finishes its step, saves and stops (again: it ends at once)" in said
    last = said.splitlines()[-1]
    assert last.startswith(f"stopped at step {done}: {number.name} asks for it; start again to go on: nemo-rpo train ")
    assert last.endswith(f"exp_manager.explicit_log_dir={out} (status 75)") and "Traceback" not in said
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)
    again = world.train(out)
    assert f"this run is complete: {out} has its last step, {STEPS}, and nothing is trained now" in again.stderr
    assert f"nemo-rpo report {out}" in again.stderr and f"nemo-rpo evaluate {out} " in again.stderr


def wait_for(run: Run, there: Path) -> None:
    deadline = time.monotonic() + 60
    while not there.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # into the saboteur's sleep
    assert run.process.poll() is None, run.log.read_text()


def test_the_second_signal_ends_it_at_once(world: World, unbroken: Path, tmp_path: Path) -> None:
    """While a checkpoint is being written, which then is as if it had not been begun."""
    out = tmp_path / "run"
    run = world.start(out, stop_at=f"slow os.rename .writing-{step(4)}")
    wait_for(run, out / "checkpoints" / f".writing-{step(4)}" / "run.json")
    send(run, signal.SIGINT)
    time.sleep(1.2)
    began = time.monotonic()
    send(run, signal.SIGINT)
    assert run.process.wait(60) == 128 + signal.SIGINT and time.monotonic() - began < AT_ONCE_S
    assert run.log.read_text().splitlines()[-1].startswith("interrupted: the run goes on from its last checkpoint")
    world.train(out)
    assert_same_end(out, unbroken, tmp_path)


def test_before_the_first_step_there_is_nothing_to_save(world: World, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = world.start(out, stop_at="slow open model.safetensors")
    wait_for(run, out)
    began = time.monotonic()
    send(run, signal.SIGTERM)
    assert run.process.wait(60) == 128 + signal.SIGTERM and time.monotonic() - began < AT_ONCE_S
    assert run.log.read_text().splitlines()[-1].startswith("interrupted: there is nothing to save")


def test_under_torchrun(world: World, tmp_path: Path) -> None:
    """SIGTERM to torchrun, which passes it on and waits 30 seconds for its ranks: they save, and nobody is left."""
    out, log = tmp_path / "run", tmp_path / "run.log"
    command = world.command(out)[3:]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module", "nemo_rpo.cli"]
    command = [sys.executable, *launch, *[part for part in command if part not in ("--nproc-per-node", "1")]]
    with log.open("w") as said:
        process = subprocess.Popen(command, env=environment(), stdout=said, stderr=said)
    run = Run(process, out, log)
    run.wait_for_step(1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    done, text = steps_done(out), log.read_text()
    assert done < STEPS and step(done) in checkpoints(out), text
    assert f"stopped at step {done}: SIGTERM asks for it; start again to go on with the same command" in text
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
