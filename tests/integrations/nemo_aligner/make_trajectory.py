"""Writes the engine's trajectory anew: ``PYTHONPATH=.:tests python -m integrations.nemo_aligner.make_trajectory``.

In the project's main environment; to be run only when the mathematics is meant to change.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

from integrations.nemo_aligner import world


def engine_run(folder: Path) -> dict[str, Any]:
    """RE-DPO on the world's rows by the package's own engine, under both estimators, in this process."""
    from ranks_trajectory import run

    world.write_model(folder / "model")
    world.tiny_world.write_rows(folder / "train.jsonl", world.engine_rows())
    found: dict[str, Any] = {"annotators": sorted({row["annotator"] for row in world.engine_rows()})}
    buffer = [f"model.rpo.buffer.{name}={value}" for name, value in world.BUFFER.items()]
    for name, overrides in {"ema": [], "buffer": ["model.rpo.estimator=buffer", *buffer]}.items():
        steps = run(folder, folder / name, [*world.engine_overrides(), *overrides])
        with (folder / name / "annotators.csv").open(newline="") as file:
            settled = [float(row["eta"]) for row in csv.DictReader(file)]
        found[name] = {"loss": [s["loss"] for s in steps], "eta": [s["eta"] for s in steps], "settled": settled}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = engine_run(Path(folder))
    lines = ",\n ".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
    world.TRAJECTORY.write_text(f"{{{lines}}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
