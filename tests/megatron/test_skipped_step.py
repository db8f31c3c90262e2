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


@pytest.fixture(scope="module")
def ran(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the run, in which are those of the runs that diverge, and what was said."""
    folder = tmp_path_factory.mktemp("skipped") / "run"
    script = Path(__file__).with_name("ranks_skipped_step.py")
    return folder, run_ranks(script, 2, world, folder, "trainer.dpo.max_steps=4").stderr


def test_a_skipped_step_is_said_and_written_down(ran: tuple[Path, str]) -> None:
    folder, stderr = ran
    first, second, third, fourth = (row for row in read_metrics(folder) if row["split"] == "train")
    assert [row["skipped"] for row in (first, second, third, fourth)] == [0, 1, 0, 0]
    assert second["grad_norm"] is None  # NaN, which JSON has no word for
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in (first, third, fourth))
    first_run = stderr[: stderr.index("Files written")]
    said = [line for line in first_run.splitlines() if line.startswith("step 2 skipped:")]
    assert said == ["step 2 skipped: the gradient norm is nan; weights and reliabilities stay as they were"]
    assert "1 of 4 steps were skipped: their gradient was NaN or infinite" in first_run

    eta = [json.loads((folder / f"eta.{rank}.json").read_text()) for rank in range(2)]
    assert eta[0] == eta[1]
    assert eta[0][1] == eta[0][0] and eta[0][2] != eta[0][1]


@pytest.mark.parametrize(("name", "steps"), [("diverged", 3), ("to the end", 4)])
def test_a_run_without_a_finite_gradient_ends_in_a_line(ran: tuple[Path, str], name: str, steps: int) -> None:
    """After ``max_skipped_steps`` in a row, or at its end if that comes first; what there is has been saved. Started
    again at its end, it says so again and hands nothing on.
    """
    folder, _ = ran
    said = {(folder / f"{name}.{rank}.txt").read_text() for rank in range(2)}
    [line] = said
    assert line.startswith(f"the run has diverged: the gradient was no finite number in the last {steps} steps, up to ")
    assert "trainer.dpo.max_skipped_steps" in line and "\n" not in line
    assert [row["skipped"] for row in read_metrics(folder / name) if row["split"] == "train"] == [1.0] * steps
    saved = json.loads((folder / name / "checkpoints" / f"step={steps:08d}" / "run.json").read_text())
    assert saved["step"] == saved["skipped_in_a_row"] == steps
    again = {(folder / f"again.{rank}.txt").read_text() for rank in range(2)}
    assert again == {(folder / "to the end.0.txt").read_text()}
    assert not (folder / name / "hf").exists()
