"""What a run says while it trains: on global rank 0, to the terminal and to its files; silence on all other ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nemo_rpo import __version__
from nemo_rpo.config.arithmetic.flops import peak_flops
from nemo_rpo.config.experts.expert_shape import expert_tensor_size
from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.training.logs.metrics import MEMORY, TIMING, Writer, metric_writers
from nemo_rpo.training.logs.progress import Progress, figures
from nemo_rpo.training.outputs.summary import AnnotatorRow

_SPLITS = {"val": "validation", "sweep": "sweep", "refit": "refit"}


class RunLog:
    """Progress and metrics of one run; every rank has one, and only that of global rank 0 does anything.

    Args:
        run_dir: the run's folder, made if missing.
        total_steps: optimizer steps of the whole run.
        resume_step: the step of the checkpoint resumed from; None for a fresh run.

    Raises:
        MissingExtraError: tensorboard, wandb or tqdm is configured but not installed.
    """

    def __init__(self, cfg: RunConfig, run_dir: str | Path, total_steps: int, resume_step: int | None = None) -> None:
        self._writers: list[Writer] = []
        self._progress: Progress | None = None
        self._said_full: set[int] = set()
        if os.environ.get("RANK", "0") == "0":
            self._writers = metric_writers(cfg, run_dir, resume_step)
            self._progress = Progress(total_steps, resume_step or 0, cfg.trainer.log_every_n_steps)
        self._peak: float | None = None
        if cfg.trainer.accelerator == "gpu" and torch.cuda.is_available():
            self._peak = peak_flops(torch.cuda.get_device_name())

    def train(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        seconds: float,
        pairs: int,
        tokens: int,
        flops: float = 0.0,
        memory: float = 0.0,
    ) -> None:
        """One optimizer step over ``pairs`` and ``tokens`` of the global batch; ``seconds`` leave out validation.

        ``flops``: model FLOPs of the step on one device (:mod:`nemo_rpo.config.arithmetic.flops`); ``memory``: bytes
        that the fullest device has held. Written as ``time/tflops_per_device``, where the GPU's peak is known
        ``time/mfu``, and ``memory/peak_gib``; rates are means over the last steps.
        """
        if self._progress is None:
            return
        rates = self._progress.rates
        rates.add(seconds, pairs, tokens, flops)
        mfu = rates.flops_per_s / self._peak if self._peak else None
        self._progress.step(step, metrics, mfu, memory)
        machine = {
            f"{TIMING}step_s": seconds,
            f"{TIMING}pairs_per_s": rates.pairs_per_s,
            f"{TIMING}tokens_per_s": rates.tokens_per_s,
            f"{TIMING}tflops_per_device": rates.flops_per_s / 1e12,
            f"{TIMING}mfu": mfu,
            f"{MEMORY}peak_gib": memory / 2**30,
        }
        self._write(step, "train", {**metrics, **{name: value for name, value in machine.items() if value}})

    def record(self, split: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a ``val`` (of a named set ``val/NAME``), ``sweep`` or ``refit`` pass after step ``step``."""
        kind, _, name = split.partition("/")
        self.note(f"{_SPLITS[kind]}{' ' * bool(name)}{name} at step {step}  {figures(metrics)}")
        self._write(step, split, metrics)

    def annotators(self, step: int, rows: Sequence[AnnotatorRow]) -> None:
        """The annotators as they stand after ``step``, for the writers that show tables (TensorBoard, W&B)."""
        for writer in self._writers:
            if hasattr(writer, "annotators"):
                self._try(writer, partial(writer.annotators, step, rows))

    def note(self, text: str) -> None:
        """A line for the person watching; in no file."""
        if self._progress is not None:
            self._progress.line(text)

    @property
    def files(self) -> list[Path]:
        """What the writers have written."""
        return [writer.path for writer in self._writers if hasattr(writer, "path")]

    def close(self) -> None:
        """Closes all writers."""
        for writer in self._writers:
            self._try(writer, writer.close)
        self._writers = []
        if self._progress is not None:
            self._progress.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        for writer in self._writers:
            self._try(writer, partial(writer.write, step, split, metrics))

    def _try(self, writer: Writer, action: Callable[[], None]) -> None:
        """A disk without room for figures is no reason to lose the steps that they are of: said once a writer."""
        try:
            action()
        except OSError as exc:
            if id(writer) not in self._said_full:
                self._said_full.add(id(writer))
                where = getattr(writer, "path", type(writer).__name__)
                self.note(f"warning: {where} cannot be written ({exc.strerror or exc}): the run goes on without it")


def startup_log(cfg: RunConfig, facts: Mapping[str, Any], world_size: int) -> None:
    """Prints :func:`startup_text` once, on global rank 0."""
    print_on_first_rank(startup_text(cfg, facts, world_size))


def startup_text(cfg: RunConfig, facts: Mapping[str, Any], world_size: int) -> str:
    """What a run is: its layout and batch, then ``facts`` in their order."""
    lines = {**_derived(cfg, world_size), **facts}
    width = max(map(len, lines))
    body = "\n".join(f"  {name:{width}}  {value}" for name, value in lines.items())
    return f"nemo-rpo {__version__}: {cfg.exp_manager.name}\n{body}"


def _derived(cfg: RunConfig, world_size: int) -> dict[str, str]:
    model = cfg.model
    splits = {
        "TP": model.tensor_model_parallel_size,
        "PP": model.pipeline_model_parallel_size,
        "CP": model.context_parallel_size,
    }
    data_parallel = world_size
    for size in splits.values():
        data_parallel //= size
    layout = " × ".join(f"{name} {size}" for name, size in {**splits, "DP": data_parallel}.items())
    if model.expert_model_parallel_size > 1:
        layout += f"; of experts EP {model.expert_model_parallel_size} × TP {expert_tensor_size(model)}"
    length = model.data.seq_length or model.encoder_seq_length
    if model.data.packed_sequence:
        batch = f"DP {data_parallel} × {model.global_batch_size // data_parallel}, in packs"
    else:
        micro_batches = model.global_batch_size // (model.micro_batch_size * data_parallel)
        batch = f"DP {data_parallel} × {micro_batches} micro-batches × {model.micro_batch_size}"
    loss = model.rpo.base_loss or model.dpo.preference_loss
    responses, what = (1, "one completion") if base_loss(model).unpaired else (2, "two responses")
    texts = responses * model.global_batch_size
    return {
        "loss": f"re_{loss}, {model.rpo.objective_in_force} objective" if model.rpo.enabled else loss,
        "ranks": f"{world_size} ({cfg.trainer.accelerator}): {layout}",
        "precision": cfg.trainer.precision,
        "pairs a step": f"{model.global_batch_size:,} = {batch}",
        "tokens a step": f"at most {texts * length:,} ({what} of up to {length:,} a pair)",
    }
