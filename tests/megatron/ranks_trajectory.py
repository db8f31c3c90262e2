"""Whole training runs one after the other on the same ranks; each leaves the loss, gradient norm and η of each step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from engine import config, places

from nemo_rpo.training.logs.metrics import read_metrics


def run(
    world: Path,
    folder: Path,
    overrides: Sequence[str],
    around_step: Callable[[Any, int], AbstractContextManager] = lambda trainer, step: nullcontext(),
) -> list[dict[str, Any]]:
    """Trains as ``nemo-rpo train`` does; returns ``{"loss", "grad_norm", "eta"}`` of every step, on every rank.

    ``around_step(trainer, step)`` is entered for each step. Among the overrides may be "packs for Transformer Engine":
    the pairs are then packed as its attention wants them, which the local layers run too.
    """
    as_for_te = "packs for Transformer Engine" in overrides
    cfg = config([*places(world, folder), *(text for text in overrides if "=" in text)])

    from nemo_rpo.megatron import cpu

    cpu.install()
    from nemo_rpo.training import packing
    from nemo_rpo.training.run import train
    from nemo_rpo.training.trainer import RPOTrainer

    eta: list[list[float]] = []  # in no file until the end
    train_single_step = RPOTrainer.train_single_step

    def recorded(trainer: RPOTrainer, step: int, batch: Any) -> None:
        with around_step(trainer, step):
            train_single_step(trainer, step, batch)
        eta.append(trainer.model.em.eta.tolist())

    te = mock.patch.object(packing, "uses_transformer_engine", lambda cfg: True) if as_for_te else nullcontext()
    with te, mock.patch.object(RPOTrainer, "train_single_step", recorded):
        train(cfg)
    steps = [row for row in read_metrics(folder) if row["split"] == "train"]
    return [
        {"loss": row["loss"], "grad_norm": row["grad_norm"], "eta": now} for row, now in zip(steps, eta, strict=True)
    ]


def main() -> None:
    """``argv``: the world's folder, the folder to write to, and a JSON object of name → overrides."""
    world, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    for name, overrides in runs.items():
        trajectory = run(world, out / "runs" / name, overrides)
        if os.environ["RANK"] == "0":
            (out / f"{name}.json").write_text(json.dumps(trajectory), encoding="utf-8")


if __name__ == "__main__":
    main()
