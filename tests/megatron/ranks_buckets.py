"""Each rank of ``test_buckets.py``: an engine with many gradient buckets is saved, goes on, and is restored."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
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
    from nemo_rpo.megatron.checkpoint import distributed as checkpoint
    from nemo_rpo.megatron.optim import optimizer

    small = partial(optimizer.DistributedDataParallelConfig, bucket_size=BUCKET)
    with mock.patch.object(optimizer, "DistributedDataParallelConfig", small):
        with engine(overrides) as run:
            steps(run, range(2))
            padding = padded_buckets(run)
            saved = folder / "checkpoint"
            if os.environ["RANK"] == "0":
                saved.mkdir()
            torch.distributed.barrier()
            checkpoint.save_state(saved, run.model, {"step": 2})
            unbroken = steps(run, range(2, 4))
        with engine(overrides) as run:
            checkpoint.load_state(saved, run.model)
            resumed = steps(run, range(2, 4))
    equal = all(torch.equal(ours, theirs) for ours, theirs in zip(resumed, unbroken, strict=True))
    (folder / f"found.{os.environ['RANK']}.json").write_text(json.dumps({"padding": padding, "equal": equal}))


if __name__ == "__main__":
    main()
