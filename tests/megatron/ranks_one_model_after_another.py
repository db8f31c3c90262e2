"""Each rank of ``test_one_model_after_another.py``: three runs. ``argv``: the world, a folder for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine import engine, places


def gloo_threads() -> int:
    names = (Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task"))
    return sum(name.startswith("gloo") for name in names)


def main() -> None:
    world, out = map(Path, sys.argv[1:])
    seen = []
    for name in "abc":
        with engine(places(world, out / name)) as run:
            run.train_step(run.batch(0))
            seen.append(gloo_threads())
    assert max(seen[1:]) < 1.5 * seen[0], seen  # a thread or two of the run before may still be ending


if __name__ == "__main__":
    main()
