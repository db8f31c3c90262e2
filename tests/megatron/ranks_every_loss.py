"""Each rank of ``test_every_loss.py``: a few steps on one batch under each of a set of runs, stepped by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from engine import engine, places


def main() -> None:
    """``argv``: the world's folder, the folder to write to, steps, and a JSON object of name → overrides."""
    world, out, steps, runs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    for name, overrides in runs.items():
        with engine([*places(world, out / "runs" / name), *overrides]) as run:
            trajectory = []
            for _ in range(steps):
                metrics, outcome = run.train_step(run.batch(0))
                trajectory.append({"loss": metrics["loss"], "grad_norm": outcome.grad_norm})
        if os.environ.get("RANK", "0") == "0":
            (out / f"{name}.json").write_text(json.dumps(trajectory), encoding="utf-8")


if __name__ == "__main__":
    main()
