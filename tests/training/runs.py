"""Real runs of ``nemo-rpo train`` on a world small enough for seconds, and how they are stopped and compared."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from paths import environment as own_environment
from rank_pool import ForkedRanks, descendants
from torchrun import run_process, start_process

from nemo_rpo.training.logs.metrics import METRICS_FILE, read_metrics

STEPS_PER_EPOCH, STEPS = 6, 12
# 48 pairs of four annotators. Two epochs, a sweep at the end of each; validation and checkpoints out of step.
_SETTINGS = """
trainer:
  accelerator: cpu
  precision: 32
  dpo: {{max_epochs: 2, val_check_interval: 3, save_interval: 2}}
exp_manager:
  name: test
  checkpoint_callback_params: {{save_top_k: 2}}
pretrained_checkpoint: {{restore_from_path: {folder}/model}}
model:
  micro_batch_size: 2
  global_batch_size: 8
  encoder_seq_length: 16
  dpo: {{ref_policy_kl_penalty: 0.5}}
  rpo: {{estimator: ema, sweep: epoch}}
  optim: {{lr: 4e-3, sched: {{warmup_steps: 3}}}}
  data:
    data_prefix: {{train: {folder}/train.jsonl, validation: {folder}/validation.jsonl}}
"""


@dataclass(frozen=True)
class World:
    """A folder with ``train.jsonl``, ``validation.jsonl``, ``model/`` and the settings of a run on them."""

    folder: Path

    @classmethod
    def write(cls, folder: Path) -> World:
        from nemo_rpo.world.files import WorldConfig, write_world
        from nemo_rpo.world.pretraining import PretrainConfig
        from nemo_rpo.world.simulated_annotators import AnnotatorConfig

        annotators = AnnotatorConfig((0.95, 0.8, 0.6, 0.2), 12, 1)
        write_world(folder, WorldConfig(validation_pairs=16, annotators=annotators, pretrain=PretrainConfig(steps=20)))
        (folder / "run.yaml").write_text(_SETTINGS.format(folder=folder))
        return cls(folder)

    def command(self, out: Path, *overrides: str, ranks: int = 1) -> list[str]:
        launch = [sys.executable, "-m", "nemo_rpo.cli", "train", "--config-name", f"{self.folder}/run.yaml"]
        return [*launch, "--nproc-per-node", str(ranks), "--", f"exp_manager.explicit_log_dir={out}", *overrides]

    def train(
        self,
        out: Path,
        *overrides: str,
        ranks: int = 1,
        check: bool = True,
        stop_at: str = "",
        before: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
        forked: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs to the end, or to ``stop_at`` (see ``saboteur/``); ``before`` is called in the new process.

        ``forked``: the run is a fork of the pool's (:mod:`rank_pool`), as are several ranks that are to reach the end;
        those that may fail are real, and started by a fork. Real from the launcher on are ranks that are stopped, and
        a run with a ``before``.
        """
        variables = environment(stop_at) | dict(env or {})
        command = self.command(out, *overrides, ranks=ranks)[1:]
        real = not forked or before is not None or (ranks > 1 and bool(stop_at))
        if ranks > 1 and check and not real:
            result = run_process(command, variables, ranks=ranks)
        else:
            result = run_process(command, variables, forked=not real, before=before)
        assert result.returncode == 0 or not check, result.stderr[-4000:]
        return result

    def start(self, out: Path, *overrides: str, ranks: int = 1, stop_at: str = "") -> Run:
        log = out.with_name(f"{out.name}.log").open("a+")
        command = self.command(out, *overrides, ranks=ranks)[1:]
        process = start_process(command, environment(stop_at), ranks=ranks if ranks > 1 else None, output=log)
        return Run(process, out, Path(log.name))


@dataclass
class Run:
    """A run under way."""

    process: subprocess.Popen | ForkedRanks
    out: Path
    log: Path

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        """Returns as soon as ``metrics.jsonl`` has the step."""
        deadline = time.monotonic() + timeout
        while steps_done(self.out) < step:
            assert self.process.poll() is None, f"the run ended before it could be stopped\n{self.log.read_text()}"
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"step {step} did not come\n{self.log.read_text()}")
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL to the launcher and to every rank, as a power cut is."""
        tree = descendants(self.process)
        self.process.kill()
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        psutil.wait_procs(tree, timeout=30)


def environment(stop_at: str = "") -> dict[str, str]:
    """Of a run's process: with the saboteur, who does nothing unless told when to."""
    paths = os.pathsep.join([str(Path(__file__).parent / "saboteur"), own_environment()["PYTHONPATH"]])
    return own_environment({"PYTHONPATH": paths, "STOP_AT": stop_at})


def steps_done(out: Path) -> int:
    """Training steps in ``metrics.jsonl``."""
    if not (out / METRICS_FILE).exists():
        return 0
    return sum(row["split"] == "train" for row in read_metrics(out))


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def step(number: int) -> str:
    return f"step={number:08d}"


def tensors(checkpoint: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by its key: weights, optimizer, EM and random state."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(checkpoint, scratch / "whole.pt")
    state = torch.load(scratch / "whole.pt", weights_only=False)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
