"""Run by ``test_rehearsal.py`` in a process of its own: the step as it is built for a GPU, on a device that is fake.

``argv``: the world's folder, a folder to write ``found.json`` to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fake_gpu
import torch
import torch.distributed as dist
from engine import config, places

PACKED = ["model.data.packed_sequence=true", "model.data.share_prompts=always"]
SCENARIOS = {
    "ema": ["model.rpo.estimator=ema"],
    "buffer, packs with shared prompts": [*PACKED, "model.rpo.estimator=buffer"],
    "all logits": ["model.rpo.logprob_head=logits"],
    "resident reference, KL": ["model.rpo.reference=resident", "model.rpo.base_loss=tdpo1"],
}


def start() -> None:
    """Process groups of one rank, whose collectives over the device have nothing to do."""
    for name in ("all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor", "_all_gather_base"):
        setattr(dist, name, lambda *args, **kwargs: None)
    dist.all_gather_object = lambda found, own, group=None: found.__setitem__(0, own)
    from nemo_rpo.megatron import parallel

    cfg = config(["model.data.data_prefix.train=none"])
    parallel.initialize(cfg)


def rehearse(overrides: list[str]) -> list[tuple[str, str, str, str]]:
    from nemo_rpo.config.validate import validate_config
    from nemo_rpo.megatron.logprobs import vocab_chunks
    from nemo_rpo.training import setup

    cfg = config(overrides)
    cfg.trainer.accelerator, cfg.trainer.precision = "gpu", "bf16"
    validate_config(cfg)
    vocab_chunks.BLOCK_ELEMENTS[fake_gpu.TYPE] = vocab_chunks.BLOCK_ELEMENTS["cuda"]
    splits = setup.open_splits(cfg)
    cache = splits["train"].cache
    batch = splits["train"].dataset.global_batch(0)
    found = []

    with fake_gpu.watched() as watch:

        def stage(name: str, function: Callable[[], Any]) -> Any:
            watch.findings.clear()
            result = None
            with watch.catching():
                result = function()
            found.extend((name, *finding) for finding in dict.fromkeys(watch.findings))
            return result

        model = stage("build", lambda: setup.build_model(cfg, setup.architecture_for(cfg, cache), cache, 10, fake_gpu.DEVICE))
        if model is None: return found
        stage("reference", lambda: model.add_ref_policy_logprobs(batch))
        stage("prepare", model.prepare_for_training_step)
        stage("forward and backward", lambda: model.get_loss_and_metrics(batch, forward_only=False))
        stage("finish", model.finish_training_step)
    return found


def main() -> None:
    world, out = map(Path, sys.argv[1:])
    fake_gpu.install()
    start()
    found = {name: rehearse([*places(world, out / "run"), *overrides]) for name, overrides in SCENARIOS.items()}
    (out / "found.json").write_text(json.dumps(found))
    for name, f in found.items():
        print("==", name)
        for x in f: print("  ", *x, sep=" | ")


if __name__ == "__main__":
    main()
