"""Checkpoints that are written while training goes on: the same in the end, and a kill loses at most one of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemo_rpo.training.logs.metrics import read_metrics

from .runs import STEPS, World, environment, step, steps_done
from .test_resume import assert_same_end, whole

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

ASYNC = "exp_manager.async_save=true"


def test_it_ends_as_a_run_that_waits(world: World, unbroken: Path, tmp_path: Path) -> None:
    """The weights change while they are being written; a checkpoint has those of its step."""
    out = tmp_path / "run"
    stderr = world.train(out, ASYNC).stderr
    assert f"saved {out}/checkpoints/{step(STEPS)}" in stderr
    assert_same_end(out, unbroken, tmp_path)


def test_training_goes_on_and_a_kill_loses_one_save(world: World, unbroken: Path, tmp_path: Path) -> None:
    """The writer of step 2 is slow: step 3 comes before its checkpoint, which kill -9 then takes with it, whole or not
    at all; so does every other moment.
    """
    out = tmp_path / "run"
    run = world.start(out, ASYNC, stop_at=f"slow open .writing-{step(2)}/__0_0.distcp")
    run.wait_for_step(3)
    assert whole(out) == [] and steps_done(out) >= 3
    writers = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()  # alone: its writer must not live on and write into the next run's folder
    run.process.wait()
    psutil.wait_procs(writers, timeout=10)
    assert not [process for process in writers if _writes(process, out)]
    for moment in (
        f"open .writing-{step(2)}/.metadata",
        f"os.rename .writing-{step(4)}",
        f"shutil.rmtree .writing-dropped-{step(2)}",
        f"open .writing-{step(8)}/__0_0.distcp",
    ):
        before = whole(out)
        assert (
            world.train(out, ASYNC, stop_at=f"kill {moment}", check=False, forked=False).returncode == -signal.SIGKILL
        )
        # The checkpoint before the one that was being written is there: the writer works on one at a time.
        number = int(moment.split("step=")[1][:8])
        assert before[-1:] <= whole(out)[-1:] and (number == 2 or whole(out)[-1] >= step(number - 2))
    world.train(out, ASYNC)
    assert_same_end(out, unbroken, tmp_path)


def _writes(process: psutil.Process, out: Path) -> bool:
    try:
        return any(file.path.startswith(str(out / "checkpoints")) for file in process.open_files())
    except psutil.NoSuchProcess:
        return False


def test_a_writer_that_dies_ends_the_run_in_a_line(world: World, tmp_path: Path) -> None:
    """By the out-of-memory killer, say; what was whole stays."""
    out = tmp_path / "run"
    result = world.train(out, ASYNC, stop_at=f"die open .writing-{step(4)}/__0_0.distcp", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        f"error: the checkpoint {out}/checkpoints/.writing-{step(4)} cannot "
    )
    assert whole(out) == [step(2)] and [path.name for path in (out / "checkpoints").iterdir()] == [step(2)]


def test_two_ranks(world: World, tmp_path: Path) -> None:
    """Each writes its part; a run on one rank goes on from it."""
    out = tmp_path / "run"
    stop = f"kill os.rename .writing-{step(6)}"
    assert world.train(out, ASYNC, ranks=2, stop_at=stop, check=False).returncode != 0
    assert whole(out)[-1] == step(4) and steps_done(out) >= 6
    world.train(out)
    assert [row["step"] for row in read_metrics(out) if row["split"] == "train"] == list(range(1, STEPS + 1))


_FAMILY = r"""
import os, sys, time
from nemo_rpo.process_tree import die_with_parent
parent = os.getpid()
if os.fork() == 0:
    die_with_parent(parent)
    os.fork()
    os.write(1, b"%d\n" % os.getpid())
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_what_works_in_the_background_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", _FAMILY], env=environment(), stdout=subprocess.PIPE, text=True) as run:
        family = [psutil.Process(int(run.stdout.readline())) for _ in range(2)]
        time.sleep(0.1)
        assert all(process.is_running() for process in family)
        run.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
