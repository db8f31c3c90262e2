"""The GPU benchmark as far as a CPU goes: its ways are configurations that a card's run would accept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the benchmark's tokenizer needs the hf extra")
import torch

from nemo_rpo.config.load import load_config
from nemo_rpo.config.validate import validate_config, validate_parallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.gpu import CONFIG, FP8, SHAPES, mfu, places_in, sizes_of, ways

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ways(FP8, liger=True))
def test_every_way_is_a_valid_run(tmp_path: Path, shape: str, name: str) -> None:
    (tmp_path / "gpu.yaml").write_text(CONFIG)
    way = ways(FP8, liger=True)[name]
    cfg = load_config(
        str(tmp_path / "gpu.yaml"),
        [*places_in(tmp_path), *sizes_of(shape), *way.overrides],
        notify=lambda text: pytest.fail(text),
    )
    validate_config(cfg)
    validate_parallel(cfg, 1)
    assert way.operations == (8 if cfg.model.rpo.base_loss == "dpo" else 6)


def test_mfu() -> None:
    """A card that does half of its peak: 989e12 / 2 operations a second are so many tokens at 6N."""
    assert mfu(989e12 / 2 / 6e9, 10**9, "NVIDIA H100 80GB HBM3", 6) == pytest.approx(0.5)
    assert mfu(1e4, 10**9, "NVIDIA H200", 8) == pytest.approx(4 / 3 * mfu(1e4, 10**9, "NVIDIA H200", 6))
    assert mfu(1e4, 10**9, "some other card", 6) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_without_a_card_it_says_so_in_one_line_and_plans() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.splitlines()[-1:] == refused.stderr.splitlines() and "needs a CUDA GPU" in refused.stderr
    planned = subprocess.run(
        [*command, "--plan", "--shapes", "8B"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = planned.stdout.splitlines()
    assert len(lines) == len(FP8) + len(ways(FP8, liger=True)) and all("1B" not in line for line in lines)
    assert "8B: fp8_blockwise, Liger, packed (6N)" in lines and "8B: bf16, blocks, packed, live reference (8N)" in lines
