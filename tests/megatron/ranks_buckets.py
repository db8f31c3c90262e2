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


def main() -> None:
    """``argv``: the world's folder, an empty folder, overrides."""
    world, folder, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    overrides = [*places(world, folder / "run"), *overrides]
    from nemo_rpo.megatron import cpu

    cpu.install()
    from nemo_rpo.megatron.checkpoint.distributed import load_state
    from nemo_rpo.megatron.checkpoint.run_file import FORMAT
    from nemo_rpo.megatron.checkpoint.writer import StateWriter
    from nemo_rpo.megatron.optim import optimizer

    def save(run: Engine, saved: Path) -> dict[str, Any]:
        if os.environ["RANK"] == "0":
            saved.mkdir()
        torch.distributed.barrier()
        writer = StateWriter(digests=False)
        said = writer.begin(saved, run.model)
        assert writer.finish(wait=True) == {}
        return {**said, "format": FORMAT}

    small = partial(optimizer.DistributedDataParallelConfig, bucket_size=BUCKET)
    with mock.patch.object(optimizer, "DistributedDataParallelConfig", small):
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
    with engine([*overrides, "model.optim.name=adam"]) as run:
        load_state(folder / "two", run.model, at_two)
        found["resumed with the plain optimizer"] = distance(steps(run, range(2, 4)), unbroken)
    (folder / f"found.{os.environ['RANK']}.json").write_text(json.dumps(found))


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
