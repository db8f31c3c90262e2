"""A process that builds one model after the other keeps none of them: neither weights nor process groups add up."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import tiny_world
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

THREE_RUNS = """
    import os
    import sys
    from pathlib import Path

    sys.path.append(sys.argv[3])
    from engine import engine, places

    def gloo_threads():
        names = (Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task"))
        return sum(name.startswith("gloo") for name in names)

    seen = []
    for name in "abc":
        with engine([*places(Path(sys.argv[1]), Path(sys.argv[2]) / name)]) as run:
            run.train_step(run.batch(0))
            seen.append(gloo_threads())
        del run
    assert max(seen[1:]) < 1.5 * seen[0], seen  # a thread or two of the run before may still be ending
"""


def test_models_and_their_groups_go(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    tiny_world.make(tmp_path / "world")
    run_ranks(THREE_RUNS, 2, tmp_path / "world", tmp_path, Path(__file__).parent)
