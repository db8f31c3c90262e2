"""Where a run's figures go: ``metrics.jsonl`` always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nemo_rpo import nemo_toolkit
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import CheckpointError, ConfigError, missing_extra
from nemo_rpo.training.outputs.summary import AnnotatorRow, annotator_table

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

METRICS_FILE = "metrics.jsonl"
# Figures of the wall clock and of the machine, the only ones that two equal runs may differ in.
TIMING, MEMORY = "time/", "memory/"
_TABLE_ROWS = 10_000  # that a table of W&B shows


class Writer(Protocol):
    """Takes the figures of one ``split`` (train, val, sweep) after optimizer step ``step``; on global rank 0 only."""

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Writes the metrics of one step under a split's name."""

    def close(self) -> None:
        """Writes what is buffered, and closes."""


class MetricsWriter:
    """``metrics.jsonl``: one object a line, ``{"step": 12, "split": "train", "loss": …}``. NaN and infinities are null.

    Resuming from the checkpoint of step S cuts off what was written after it, so that the file of an interrupted and
    resumed run equals that of an unbroken one in everything but ``time/…`` and ``memory/…``. Hence: what belongs to
    step S is to be written before its checkpoint. A fresh run keeps an earlier file beside its own as
    ``metrics.previous.jsonl``.

    Args:
        resume_step: the step of the checkpoint resumed from; None starts afresh.
    """

    def __init__(self, run_dir: str | Path, resume_step: int | None = None) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            if resume_step is None:
                os.replace(self.path, self.path.with_name("metrics.previous.jsonl"))
            else:
                _cut_after(self.path, resume_step)
        self._file = self.path.open("ab", buffering=0)
        self._waiting: deque[bytes] = deque()  # lines that the disk has had no room for so far

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Raises :class:`OSError` where the disk has no room: the line then waits for the next write, or for the end,
        and the file has no half of it.
        """
        row = {"step": step, "split": split, **{name: _plain(value) for name, value in metrics.items()}}
        self._waiting.append((json.dumps(row, allow_nan=False) + "\n").encode())
        self._flush()

    def _flush(self) -> None:
        while self._waiting:
            line, whole = self._waiting[0], os.fstat(self._file.fileno()).st_size
            # One write of a whole line that leaves the process at once: a killed run loses no finished step.
            if self._file.write(line) != len(line):
                self._file.truncate(whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._waiting.popleft()

    def close(self) -> None:
        """Closes the file."""
        try:
            self._flush()
        finally:
            self._file.close()


def read_metrics(run_dir: str | Path, timing: bool = True) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl`` in order; without ``timing``, only what equal runs have in common."""
    rows = []
    for line in (Path(run_dir) / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
        row = _parse(line)
        if row is not None:
            rows.append(row if timing else {k: v for k, v in row.items() if not k.startswith((TIMING, MEMORY))})
    return rows


class TensorBoardWriter:
    """Event files in ``run_dir/tensorboard``, tags ``train/loss``; resuming hides what came after the checkpoint.

    ``options`` are further arguments of TensorBoard's ``SummaryWriter``: ``exp_manager.summary_writer_kwargs``.
    """

    def __init__(self, run_dir: str | Path, resume_step: int | None = None, **options: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise missing_extra("tensorboard", "logging") from exc
        self.path = Path(run_dir) / "tensorboard"
        arguments = {"purge_step": None if resume_step is None else resume_step + 1, **options}
        try:
            self._events = SummaryWriter(self.path, **arguments)
        except TypeError as exc:
            raise ConfigError(f"exp_manager.summary_writer_kwargs: {exc}") from exc

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """One scalar a metric."""
        for name, value in _numbers(metrics).items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def annotators(self, step: int, rows: Sequence[AnnotatorRow]) -> None:
        """A histogram of η, and the table of a run's end as text."""
        self._events.add_histogram("annotators/eta", np.array([row.eta for row in rows]), step)
        table = "\n".join(f"    {line}" for line in annotator_table(rows).splitlines())  # Markdown: as it stands
        self._events.add_text("annotators/table", table, step)

    def close(self) -> None:
        """Writes what is buffered, and closes."""
        self._events.close()


class WandbWriter:
    """A Weights & Biases run, configured by ``exp_manager.wandb_logger_kwargs`` (the arguments of ``wandb.init``).

    The run's id is kept in ``run_dir/wandb_id``, so that a resumed run continues its curves.
    """

    def __init__(self, cfg: RunConfig, run_dir: str | Path) -> None:
        try:
            import wandb
        except ImportError as exc:
            raise missing_extra("wandb", "logging") from exc
        run_id = Path(run_dir) / "wandb_id"
        if not run_id.exists():
            with whole_file(run_id, ConfigError, "see that its disk has room") as writing:
                writing.write_text(secrets.token_hex(8), encoding="utf-8")
        arguments = {
            "id": run_id.read_text(encoding="utf-8").strip(),
            "resume": "allow",
            "dir": str(run_dir),
            "name": cfg.exp_manager.name,
            **cfg.exp_manager.wandb_logger_kwargs,
        }
        try:
            self._run = wandb.init(config=asdict(cfg), **arguments)
        except TypeError as exc:
            raise ConfigError(f"exp_manager.wandb_logger_kwargs: {exc}") from exc
        # W&B drops rows whose own step does not rise, as after a resume; an axis of ours may go back.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """One log call a step."""
        self._run.log({"step": step, **{f"{split}/{name}": value for name, value in _numbers(metrics).items()}})

    def annotators(self, step: int, rows: Sequence[AnnotatorRow]) -> None:
        """A histogram of η, and a table of up to :data:`_TABLE_ROWS` annotators, the least reliable first."""
        import wandb

        least = sorted(rows, key=lambda row: (row.eta, row.annotator))[:_TABLE_ROWS]
        cells = [[row.annotator, row.labels, row.eta, _plain(row.standard_error), row.running] for row in least]
        table = wandb.Table(columns=["annotator", "labels", "eta", "standard_error", "eta_running"], data=cells)
        histogram = wandb.Histogram([row.eta for row in rows])
        self._run.log({"step": step, "annotators/table": table, "annotators/eta": histogram})

    def close(self) -> None:
        """Ends the W&B run."""
        self._run.finish()


class LightningWriter:
    """A logger of Lightning's, as NeMo's ``exp_manager`` makes them, with tags ``train/loss``."""

    def __init__(self, logger: Logger, cfg: RunConfig) -> None:
        self._logger = logger
        logger.log_hyperparams(asdict(cfg))

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Hands the metrics to the logger."""
        self._logger.log_metrics({f"{split}/{name}": value for name, value in _numbers(metrics).items()}, step)

    def close(self) -> None:
        """Tells the logger that the run ended well."""
        self._logger.finalize("success")


def metric_writers(cfg: RunConfig, run_dir: str | Path, resume_step: int | None = None) -> list[Writer]:
    """The writers that ``exp_manager`` asks for: those of NeMo's where nemo-toolkit is in use.

    Raises:
        MissingExtraError: one is not installed, or needs nemo-toolkit.
        ConfigError: an argument that it does not know, or a file to copy that is not there.
    """
    run_dir, manager = Path(run_dir), cfg.exp_manager
    writers: list[Writer] = [MetricsWriter(run_dir, resume_step)]
    if nemo_toolkit.version() is not None:
        from nemo_rpo.nemo_toolkit.experiment import loggers_of

        loggers = loggers_of(asdict(manager), run_dir, resume_step)
        return [*writers, *(LightningWriter(logger, cfg) for logger in loggers)]
    for name in ("mlflow", "dllogger", "clearml", "neptune"):
        if getattr(manager, f"create_{name}_logger"):
            raise missing_extra(f"nemo-toolkit, which makes the logger of exp_manager.create_{name}_logger,", "nemo")
    if manager.create_tensorboard_logger:
        writers.append(TensorBoardWriter(run_dir, resume_step, **manager.summary_writer_kwargs))
    if manager.create_wandb_logger:
        writers.append(WandbWriter(cfg, run_dir))
    for file in manager.files_to_copy:
        try:
            shutil.copy(file, run_dir)
        except OSError as exc:
            raise ConfigError(f"exp_manager.files_to_copy: {exc}") from exc
    return writers


def _cut_after(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        row = _parse(line)
        if row is not None and row["step"] <= step:
            kept.append(line)
    with whole_file(path, CheckpointError, "see that its disk has room and start again") as writing:
        writing.write_text("".join(kept), encoding="utf-8")


def _parse(line: str) -> dict[str, Any] | None:
    """The row of a line; None for one that a killed process left unfinished, or that a disk has damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("split"), str)
    return row if whole else None


def _plain(value: Any) -> Any:
    """Tensors and arrays as numbers or lists; JSON has no NaN."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The single figures among ``metrics``, the only ones that a curve can show."""
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in metrics.items()}
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}
