"""Each rank of ``test_skipped_step.py``: a whole run in which the second step has a NaN gradient on the last rank, and
one in which every step has.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ranks_em_step import gradient_of
from ranks_trajectory import run

from nemo_rpo.errors import TrainingError
from nemo_rpo.megatron import parallel
from nemo_rpo.training.trainer import RPOTrainer


def main() -> None:
    """``argv``: the world's folder, the run's folder, overrides."""
    world, folder, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

    def break_the_second(trainer: RPOTrainer, step: int) -> AbstractContextManager:
        return gradient_of(trainer.model, float("nan")) if step == 2 else nullcontext()

    def break_all(trainer: RPOTrainer, step: int) -> AbstractContextManager:
        return gradient_of(trainer.model, float("nan"))

    trajectory = run(world, folder, overrides, break_the_second)
    (folder / f"eta.{os.environ['RANK']}.json").write_text(json.dumps([step["eta"] for step in trajectory]))
    # The last one is started again.
    for name, limit, said in (
        ("diverged", 3, "diverged"),
        ("to the end", 20, "to the end"),
        ("to the end", 20, "again"),
    ):
        try:
            run(world, folder / name, [*overrides, f"trainer.dpo.max_skipped_steps={limit}"], break_all)
        except TrainingError as exc:
            (folder / f"{said}.{os.environ['RANK']}.txt").write_text(str(exc))
        parallel.finalize()


if __name__ == "__main__":
    main()
