"""A run with a NaN gradient: the step is skipped, said aloud, written down, and the run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

from nemo_rpo.training.logs.metrics import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]


def test_a_skipped_step_is_said_and_written_down(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    script = Path(__file__).with_name("ranks_skipped_step.py")
    ran = run_ranks(script, 2, world, folder, "trainer.dpo.max_steps=4")

    first, second, third, fourth = (row for row in read_metrics(folder) if row["split"] == "train")
    assert [row["skipped"] for row in (first, second, third, fourth)] == [0, 1, 0, 0]
    assert second["grad_norm"] is None  # NaN, which JSON has no word for
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in (first, third, fourth))
    said = [line for line in ran.stderr.splitlines() if "skipped:" in line]
    assert said == ["step 2 skipped: the gradient norm is nan; weights and reliabilities stay as they were"]

    eta = [json.loads((folder / f"eta.{rank}.json").read_text()) for rank in range(2)]
    assert eta[0] == eta[1]
    assert eta[0][1] == eta[0][0] and eta[0][2] != eta[0][1]
