"""What a run does with its machine: MFU by hand, profiled steps, determinism."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_rpo.config.arithmetic.flops import peak_flops, step_flops
from nemo_rpo.config.schema import ModelConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.planning.models import MODELS
from nemo_rpo.training.logs.memory import peak_bytes
from nemo_rpo.training.process.accelerator import use_determinism
from nemo_rpo.training.process.profiling import StepProfiler


def test_flops_of_a_step_by_hand() -> None:
    """Llama-3 8B on two texts, the figures of a pocket calculator; the known count of its weights gives the layers."""
    model, lengths, scored = MODELS["llama3-8b"], np.array([2048, 512]), np.array([100, 12])
    matrices = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336)
    layers = 2 * matrices * 2560 + 32 * 2 * 4096 * (2048**2 + 512**2)
    head = 2 * 128256 * 4096 * 112
    assert step_flops(model, lengths, scored, frozen=0) == pytest.approx(3 * (layers + head), rel=1e-12)
    assert step_flops(model, lengths, scored, frozen=1) == pytest.approx(4 * (layers + head), rel=1e-12)
    assert step_flops(model, lengths, scored, frozen=0, head=False) == pytest.approx(3 * layers, rel=1e-12)


def test_peaks() -> None:
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA GeForce RTX 3060") is None


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_bytes(torch.device("cpu")) >= max(before, held.numel()) > 32 * 2**20


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA's profiler, and of NVTX."""
    found: list[str] = []

    def noting(name: str) -> Callable[[], None]:
        return lambda: found.append(name)

    @contextlib.contextmanager
    def marks(record_shapes: bool) -> Iterator[None]:
        found.append(f"marks, shapes {record_shapes}")
        yield
        found.append("no marks")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", noting("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", noting("stop"))
    monkeypatch.setattr(torch.autograd.profiler, "emit_nvtx", marks)
    return found


def nsys(**settings: object) -> ModelConfig:
    model = ModelConfig()
    for name, value in {"enabled": True, "start_step": 2, "end_step": 3, **settings}.items():
        setattr(model.nsys_profile, name, value)
    return model


def run(profiler: StepProfiler, calls: list[str]) -> None:
    for step in range(1, 5):
        with profiler.step(step):
            calls.append(f"step {step}")


def test_nsys_sees_the_steps_that_it_is_to_see(calls: list[str], tmp_path: Path, monkeypatch) -> None:
    run(StepProfiler(nsys(gen_shape=True), tmp_path), calls)
    range_ = ["start", "marks, shapes True", "step 2", "step 3", "no marks", "stop"]
    assert calls == ["step 1", *range_, "step 4"]
    for model, rank in ((nsys(ranks=[1]), "0"), (nsys(enabled=False), "0"), (nsys(), "3")):
        calls.clear()
        monkeypatch.setenv("RANK", rank)
        run(StepProfiler(model, tmp_path), calls)
        assert calls == [f"step {step}" for step in range(1, 5)]


def test_determinism_is_asked_of_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("CUBLAS_WORKSPACE_CONFIG", "NVTE_ALLOW_NONDETERMINISTIC_ALGO", "NCCL_ALGO")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_ALGO", "Tree")  # the user's own, which is as good
    try:
        use_determinism(True, on_gpu=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert [os.environ[name] for name in names] == [":4096:8", "0", "Tree"]
        monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
        with pytest.raises(ConfigError, match=r"does not go with NVTE_ALLOW_NONDETERMINISTIC_ALGO=1: unset it"):
            use_determinism(True, on_gpu=True)
    finally:
        use_determinism(False, on_gpu=True)
        for name in names:
            monkeypatch.delenv(name, raising=False)
    assert not torch.are_deterministic_algorithms_enabled()
