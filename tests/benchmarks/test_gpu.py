"""The GPU benchmark as far as a CPU goes: its ways are configurations that a card's run would accept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the benchmark's tokenizer needs the hf extra")
import torch

from nemo_rpo.config.load import load_config
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.validate import validate_config, validate_parallel
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.gpu import CONFIG, FP8, SHAPES, places_in, sizes_of, ways

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ways(FP8, liger=True))
def test_every_way_is_a_valid_run(tmp_path: Path, shape: str, name: str) -> None:
    (tmp_path / "gpu.yaml").write_text(CONFIG)
    settings = ways(FP8, liger=True)[name]
    cfg = load_config(
        str(tmp_path / "gpu.yaml"),
        [*places_in(tmp_path), *sizes_of(shape), *settings],
        notify=lambda text: pytest.fail(text),
    )
    validate_config(cfg)
    validate_parallel(cfg, 1)
    assert StepNeeds.of(base_loss(cfg.model), cfg.model).live_reference == name.endswith("live reference")


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
    assert "8B: fp8_blockwise, Liger, packed" in lines and "8B: bf16, blocks, packed, live reference" in lines
