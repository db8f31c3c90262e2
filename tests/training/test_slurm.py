"""The Slurm job scripts: what can be read of all three, and the trainer's own on two "nodes" of this machine.

Slurm's commands are those of ``loopback_slurm/``; the script, its launchers, their rendezvous and the ranks are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from paths import ROOT

from .runs import Run, World, environment, steps_done
from .test_resume import assert_same_end

SCRIPTS = ROOT / "examples" / "slurm"
STUBS = Path(__file__).parent / "loopback_slurm"
JOB = "4711"
NODES = 2


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_job_scripts_are_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; run: pip install 'nemo-rpo[dev]'")
    checked = subprocess.run([shellcheck, "-x", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sbatch")), ids=lambda path: path.name)
def test_job_scripts_come_back(script: Path) -> None:
    """What a job needs to be warned, to be put back into the queue and to keep its log."""
    text = script.read_text()
    for directive in ("--signal=B:USR1@", "--requeue", "--open-mode=append", "--time="):
        assert f"#SBATCH {directive}" in text
    assert "--container-image=" in text and "--container-mounts=" in text and "run_or_requeue " in text


class Job:
    """``train.sbatch`` as Slurm would start it, again after each requeue, in the run's folder ``out``."""

    def __init__(self, world: World, out: Path, loopback: Path) -> None:
        self.world, self.out, self.loopback, self.starts = world, out, loopback, 0
        loopback.mkdir()

    def start(self, *overrides: str) -> Run:
        slurm = {
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": f"node[1-{NODES}]",
            "SLURM_JOB_NUM_NODES": str(NODES),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_RESTART_COUNT": str(self.starts),
            "CONTAINER": "nemo-rpo.sqsh",
            "MOUNTS": "/data:/data",
            "LOOPBACK": str(self.loopback),
            "PATH": os.pathsep.join([str(STUBS), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        self.starts += 1
        run = ["--config-name", f"{self.world.folder}/run.yaml", "--nproc-per-node", "1"]
        log = self.out.with_name("job.log")
        process = subprocess.Popen(
            ["bash", SCRIPTS / "train.sbatch", *run, f"exp_manager.explicit_log_dir={self.out}", *overrides],
            env=environment() | slurm,
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return Run(process, self.out, log)

    def requeued(self) -> int:
        file = self.loopback / "requeued"
        return len(file.read_text().split()) if file.exists() else 0

    def said(self) -> str:
        return "".join((self.loopback / f"node{node}").read_text() for node in range(NODES))

    def take_away(self, node: int) -> None:
        """SIGKILL to the launcher of ``node`` and to its ranks, as when the machine goes down."""
        launcher = psutil.Process(int((self.loopback / "tasks").read_text().split()[node]))
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()


@pytest.mark.distributed
def test_two_nodes_are_warned_and_lost_and_end_as_one(world: World, tmp_path: Path) -> None:
    """Warned after a step, then without its second node, then undisturbed: the two ranks of one node, bit for bit.

    A mistake is not tried again.
    """
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    # A stop saves where it comes, and may be the best with another's measurement: the last one is compared.
    last_alone = "exp_manager.checkpoint_callback_params.save_top_k=0"
    world.train(unbroken, last_alone, ranks=NODES)
    job = Job(world, out, tmp_path / "loopback")

    run = job.start(last_alone)
    run.wait_for_step(1)
    run.process.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@300 sends, to the script alone
    assert run.process.wait(400) == 0 and job.requeued() == 1, run.log.read_text()
    assert "SIGUSR1 asks for it; start again to go on" in job.said()
    assert "status 75, asked to stop: requeued" in run.log.read_text()

    run = job.start(last_alone)
    run.wait_for_step(steps_done(out) + 2)
    job.take_away(1)
    assert run.process.wait(400) == 0 and job.requeued() == 2, run.log.read_text()
    assert not (out / "hf").exists()

    assert job.start(last_alone).process.wait(400) == 0 and job.requeued() == 2, run.log.read_text()
    assert_same_end(out, unbroken, tmp_path)

    assert job.start("model.optm.lr=1").process.wait(200) == 2 and job.requeued() == 2
    assert job.said().count("error: unknown key model.optm.lr") == NODES  # each launcher reads before it starts a rank
