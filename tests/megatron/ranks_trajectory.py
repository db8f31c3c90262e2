"""Whole training runs one after the other on the same ranks; each leaves the loss, gradient norm and η of each step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_rpo.config.load import load_config
from nemo_rpo.config.validate import validate_config, validate_parallel
from nemo_rpo.training.metrics import read_metrics

CONFIG = Path(__file__).with_name("tiny.yaml")


def run(world: Path, folder: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Trains as ``nemo-rpo train`` does; returns ``{"loss", "grad_norm", "eta"}`` of every step, on every rank."""
    places = [
        f"pretrained_checkpoint.restore_from_path={world / 'model'}",
        f"model.data.data_prefix.train={world / 'train.jsonl'}",
        f"exp_manager.explicit_log_dir={folder}",
    ]
    cfg = load_config(str(CONFIG), [*places, *overrides], notify=lambda text: None)
    validate_config(cfg)
    validate_parallel(cfg, int(os.environ.get("WORLD_SIZE", "1")))

    from nemo_rpo.megatron import cpu

    cpu.install()
    from nemo_rpo.training import trainer
    from nemo_rpo.training.run import train

    eta: list[list[float]] = []

    class Recorder(trainer.RPOTrainer):
        """The trainer, looked at after each step: η of every annotator is in no file until the end."""

        def train_single_step(self, *args: Any) -> None:
            super().train_single_step(*args)
            eta.append(self.model.em.eta.tolist())

    original, trainer.RPOTrainer = trainer.RPOTrainer, Recorder
    try:
        train(cfg)
    finally:
        trainer.RPOTrainer = original
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
