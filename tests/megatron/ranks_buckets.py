"""Each rank of ``test_buckets.py``: an engine with many gradient buckets is saved, goes on, and is restored."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from engine import Engine, engine, places

BUCKET = 3000  # numbers; a parameter or two


def steps(run: Engine, numbers: range) -> list[torch.Tensor]:
    """The weights after these steps."""
    for number in numbers:
        run.train_step(run.batch(number))
    return [parameter.detach().clone() for parameter in run.model.model[0].parameters()]


def padded_buckets(run: Engine) -> list[int]:
    """Padding behind every bucket but the last of each buffer."""
    buffers = run.model.model[0].buffers
    return [b.grad_data.numel() - b.numel_unpadded for buffer in buffers for b in buffer.buckets[:-1]]


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(ours, theirs, strict=True))


def save(run: Engine, folder: Path) -> dict[str, Any]:
    """Writes a checkpoint; its ``run.json``."""
    from nemo_rpo.megatron.checkpoint.run_file import FORMAT
    from nemo_rpo.megatron.checkpoint.writer import StateWriter

    if os.environ["RANK"] == "0":
        folder.mkdir(parents=True)
    torch.distributed.barrier()
    writer = StateWriter(digests=False)
    said = writer.begin(folder, run.model)
    assert writer.finish(wait=True) == {}
    return {**said, "format": FORMAT}


def experiment(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Saved before any step and after two; how far four steps in one run are from those of runs that went on from
    there, with the same optimizer and with the other one, and that one from its own checkpoint.
    """
    from nemo_rpo.megatron.checkpoint.distributed import load_state

    other = [*overrides, "model.optim.name=adam"]
    with engine(overrides) as run:
        at_start = save(run, folder / "start")
        steps(run, range(2))
        found: dict[str, Any] = {"padding": padded_buckets(run)}
        at_two = save(run, folder / "two")
        unbroken = steps(run, range(2, 4))
    with engine(overrides) as run:
        load_state(folder / "two", run.model, at_two)
        found["resumed"] = distance(steps(run, range(2, 4)), unbroken)
    with engine(overrides) as run:
        load_state(folder / "start", run.model, at_start)
        found["resumed before any step"] = distance(steps(run, range(4)), unbroken)
    with engine(other) as run:
        load_state(folder / "two", run.model, at_two)
        at_two_again = save(run, folder / "again")
        of_other = steps(run, range(2, 4))
        found["resumed with the other optimizer"] = distance(of_other, unbroken)
    with engine(other) as run:
        load_state(folder / "again", run.model, at_two_again)
        found["the other one resumed"] = distance(steps(run, range(2, 4)), of_other)
    return found


def main() -> None:
    """``argv``: the world's folder, an empty folder, overrides."""
    world, folder, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    overrides = [*places(world, folder / "run"), *overrides]
    from nemo_rpo.megatron import cpu

    cpu.install()
    from nemo_rpo.megatron.optim import optimizer

    small = partial(optimizer.DistributedDataParallelConfig, bucket_size=BUCKET)
    with mock.patch.object(optimizer, "DistributedDataParallelConfig", small):
        found = {
            precision: experiment(folder / precision, [*overrides, f"trainer.precision={precision}"])
            for precision in ("32", "bf16")
        }
    (folder / f"found.{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
