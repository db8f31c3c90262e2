"""What is saved and exported after some steps are the weights of those steps, whatever is overlapped or split.

Losses alone do not show it: an optimizer that gathers its weights late leaves every reader but the next training step
with weights that are a step old.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torchrun import run_ranks

from nemo_rpo.training.logs.metrics import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

STEPS, TOLERANCE = 5, 1e-6
MEASURED = "trainer.dpo.val_check_interval=2"  # between steps, and so between a step and the gathering of its weights
INTERLEAVED = ["model.pipeline_model_parallel_size=2", "model.virtual_pipeline_model_parallel_size=2"]
GRADIENTS = "model.optim.overlap_grad_sync=true"
PARAMETERS = [GRADIENTS, "model.optim.overlap_param_sync=true", "model.rpo.reference=resident"]
RUNS: dict[int, dict[str, list[str]]] = {
    1: {"one rank": [MEASURED]},
    2: {
        "DP=2, plain optimizer": ["model.optim.name=adam", MEASURED],
        "DP=2, distributed optimizer": [MEASURED],
        "DP=2, gradients overlapped": [GRADIENTS, MEASURED],
        "DP=2, parameters overlapped": PARAMETERS,
        "DP=2, parameters overlapped, measured": [*PARAMETERS, MEASURED],
        "PP=2, interleaved": [*INTERLEAVED, MEASURED],
    },
    4: {"PP=2 × DP=2, interleaved, parameters overlapped": [*INTERLEAVED, *PARAMETERS, MEASURED]},
}


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a run; its ranks start when the first run of their number is asked for."""
    folders: dict[int, Path] = {}
    common = [
        f"trainer.dpo.max_steps={STEPS}",
        "exp_manager.checkpoint_callback_params.save_hf_on_train_end=true",
        "exp_manager.checkpoint_callback_params.save_top_k=0",
        f"model.data.data_prefix.validation={world / 'validation.jsonl'}",
    ]

    def folder_of(name: str) -> Path:
        [ranks] = [count for count, runs in RUNS.items() if name in runs]
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("trained")
            runs = {run: [*common, *overrides] for run, overrides in RUNS[ranks].items()}
            script = Path(__file__).with_name("ranks_trajectory.py")
            run_ranks(script, ranks, world, folders[ranks], json.dumps(runs), timeout=500)
        return folders[ranks] / "runs" / name

    return folder_of


def saved(run: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint by its key, but for random states."""
    dcp_to_torch_save(run / "checkpoints" / f"step={STEPS:08d}", scratch / "whole.pt")
    state = torch.load(scratch / "whole.pt", weights_only=False)
    return {key: of for key, of in state.items() if isinstance(of, torch.Tensor) and not key.startswith("random.")}


@pytest.mark.parametrize("name", [name for ranks in (2, 4) for name in RUNS[ranks]])
def test_export_and_checkpoint_hold_the_last_steps_weights(
    name: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    ours, theirs = trained(name), trained("one rank")
    of_export = [load_file(run / "hf" / "model.safetensors") for run in (ours, theirs)]
    of_checkpoint = [saved(run, tmp_path) for run in (ours, theirs)]
    for found, expected in (of_export, of_checkpoint):
        assert found.keys() == expected.keys()
        for key in expected:
            # Margins are differences of sums of some 50 nats in fp32, whose last digit is 4e-6.
            allowed = 1e-5 if key.startswith("em.pairs.") else TOLERANCE
            torch.testing.assert_close(
                found[key],
                expected[key],
                rtol=allowed,
                atol=allowed,
                equal_nan=True,
                msg=lambda text, at=key: f"{at}: {text}",
            )
    assert any(key.startswith("optimizer.exp_avg_sq.") for key in of_checkpoint[0])


@pytest.mark.parametrize("name", [name for ranks in (2, 4) for name, run in RUNS[ranks].items() if MEASURED in run])
def test_a_validation_measures_the_last_steps_weights(name: str, trained: Callable[[str], Path]) -> None:
    found, expected = (
        [row["loss"] for row in read_metrics(trained(run)) if row["split"] == "val"] for run in (name, "one rank")
    )
    assert len(set(expected)) == len(expected) > 1
    assert found == pytest.approx(expected, abs=TOLERANCE)
