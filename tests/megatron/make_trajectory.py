"""Writes the committed trajectory anew: ``PYTHONPATH=. OMP_NUM_THREADS=1 python tests/megatron/make_trajectory.py``.

To be run only when the mathematics is meant to change, and the commit then says why it did.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import tiny_world
from ranks_trajectory import run

TRAJECTORY = Path(__file__).with_name("trajectory.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = tiny_world.make(Path(folder) / "world")
        steps = run(world, Path(folder) / "run", [])
    lines = ",\n ".join(json.dumps(step) for step in steps)
    TRAJECTORY.write_text(f"[{lines}]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
