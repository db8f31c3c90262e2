"""Each rank of ``test_provider.py``: runs whose model Megatron-Bridge builds, and the same by the own builder."""

# ruff: noqa: E402 (what makes Megatron-Bridge run on a CPU comes before its import)
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import bridge_cpu

bridge_cpu.install()

import torch
from megatron.core.utils import unwrap_model

sys.path.append(str(Path(__file__).parents[2] / "megatron"))

from engine import engine, places
from ranks_trajectory import run

from nemo_rpo.errors import RPOError
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.network.autobridge import load_bridge_weights

BRIDGE = "model.provider=megatron_bridge"


def refusal(world: Path, folder: Path, overrides: list[str]) -> str:
    """What a run that must not start says."""
    try:
        run(world, folder, overrides)
    except RPOError as exc:
        parallel.finalize()
        return str(exc)
    return ""


def left_untouched(world: Path, folder: Path) -> str:
    """What loading says where the model has a parameter that Bridge's import does not know."""
    with engine([*places(world, folder), BRIDGE, "model.tensor_model_parallel_size=2"]) as made:
        model = unwrap_model(made.model.model[0])
        model.register_parameter("spare", torch.nn.Parameter(torch.zeros(3)))
        said = ""
        try:
            load_bridge_weights([model], world / "model")
        except RPOError as exc:
            said = str(exc)
    return said


def main() -> None:
    """``argv``: the world, the folder to write to, JSON objects of name → overrides of runs, and of refused ones."""
    world, out, runs, refused = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
    found: dict[str, Any] = {"left untouched": left_untouched(world, out / "untouched")}
    found |= {name: run(world, out / name, overrides) for name, overrides in runs.items()}
    found["refused"] = {name: refusal(world, out / name, overrides) for name, overrides in refused.items()}
    if os.environ["RANK"] == "0":
        (out / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
