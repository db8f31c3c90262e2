"""Profiles of some training steps: ranges for NVIDIA Nsight Systems, or a trace by torch's profiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from nemo_rpo.config.schema import ModelConfig, ProfileConfig

FOLDER = "profile"  # in the run's folder


class StepProfiler:
    """Profiles steps ``start_step`` to ``end_step`` on the ranks that the configuration names.

    ``model.nsys_profile`` opens CUDA's profiler range and marks every operation by NVTX; the process itself is started
    under ``nsys profile --capture-range cudaProfilerApi --trace cuda,nvtx``, which records what lies inside.
    ``model.torch_profile`` writes ``profile/rank<R>.json``, a trace for chrome://tracing and Perfetto. No collective.
    """

    def __init__(self, model: ModelConfig, run_dir: Path) -> None:
        self._rank = int(os.environ.get("RANK", "0"))
        self._nsys, self._torch = (self._here(cfg) for cfg in (model.nsys_profile, model.torch_profile))
        self._file = run_dir / FOLDER / f"rank{self._rank}.json"
        self._running = ExitStack()

    def _here(self, cfg: ProfileConfig) -> ProfileConfig | None:
        return cfg if cfg.enabled and self._rank in cfg.ranks else None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around optimizer step ``step``: starts what begins with it, and ends what ends with it."""
        for cfg, started in ((self._nsys, self._nsys_range), (self._torch, self._trace)):
            if cfg is not None and step == cfg.start_step:
                self._running.enter_context(started(cfg.gen_shape))
        yield
        for cfg in (self._nsys, self._torch):
            if cfg is not None and step == cfg.end_step:
                self._running.close()

    @contextlib.contextmanager
    def _nsys_range(self, shapes: bool) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        with torch.autograd.profiler.emit_nvtx(record_shapes=shapes):
            yield
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()

    @contextlib.contextmanager
    def _trace(self, shapes: bool) -> Iterator[None]:
        with torch.profiler.profile(record_shapes=shapes) as profile:
            yield
        self._file.parent.mkdir(exist_ok=True)
        profile.export_chrome_trace(str(self._file))
