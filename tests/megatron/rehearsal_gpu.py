"""Run by ``test_rehearsal.py`` in a process of its own: the step as it is built for a GPU, on a device that is fake.

``argv``: the world's folder, a folder to write ``found.json`` to, a folder of :mod:`expert_worlds`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import fake_gpu
from engine import config, places
from planted_faults import FAULTS

PACKED = ["model.data.packed_sequence=true", "model.data.share_prompts=always"]
SCENARIOS = {
    "ema, swapped reference": ["model.rpo.estimator=ema"],
    "buffer, packs with shared prompts": [*PACKED, "model.rpo.estimator=buffer"],
    "all logits, plain optimizer": ["model.rpo.logprob_head=logits", "model.optim.name=adam"],
    "resident reference, KL": ["model.rpo.reference=resident", "model.rpo.base_loss=tdpo1"],
    "rankings": [],
    "LoRA, full recompute": [
        "model.peft.peft_scheme=lora",
        "model.peft.lora_tuning.target_modules=[all-linear]",
        "model.activations_checkpoint_granularity=full",
        "model.activations_checkpoint_method=uniform",
        "model.activations_checkpoint_num_layers=1",
    ],
    "reward model": ["model.rpo.base_loss=bt"],
    "experts, one after the other": ["model.rpo.reference=resident", "model.moe_aux_loss_coeff=0.1"],
    "experts with adapters": ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.target_modules=[all,experts]"],
}


def start_groups() -> None:
    """Process groups of one rank."""
    from nemo_rpo.megatron import parallel
    from nemo_rpo.megatron.logprobs import vocab_chunks

    parallel.initialize(config(["model.data.data_prefix.train=none"]))
    vocab_chunks.BLOCK_ELEMENTS[fake_gpu.TYPE] = vocab_chunks.BLOCK_ELEMENTS["cuda"]


def rehearse(overrides: Sequence[str], faults: bool) -> dict[str, list[fake_gpu.Finding]]:
    """What was found in each stage of a step; with ``faults`` then in a forward with each of :data:`FAULTS`."""
    from nemo_rpo.config.validate import validate_config
    from nemo_rpo.megatron.model import MegatronGPTRPOModel
    from nemo_rpo.training import data_of_run, setup

    cfg = config(overrides)
    cfg.trainer.accelerator, cfg.trainer.precision = "gpu", "bf16"
    validate_config(cfg)
    splits = data_of_run.open_splits(cfg)
    cache = splits["train"].cache
    batch = splits["train"].dataset.global_batch(0)
    architecture = setup.architecture_for(cfg, cache)
    found: dict[str, list[fake_gpu.Finding]] = {}

    def stage(name: str, function: Callable[[], Any]) -> None:
        watch.findings.clear()
        with watch.catching():
            function()
        found[name] = list(dict.fromkeys(watch.findings))

    with fake_gpu.watched() as watch:
        model = setup.build_model(cfg, architecture, cache, 10, fake_gpu.DEVICE)
        stage("frozen policies", partial(model.add_ref_policy_logprobs, batch))
        stage("prepare", model.prepare_for_training_step)
        stage("forward, backward, exchange", partial(model.get_loss_and_metrics, batch, forward_only=False))
        stage("optimizer and commit", model.finish_training_step)
        stage("validation", partial(model.validation_forward, batch))
        for fault in FAULTS if faults else ():
            with mock.patch.object(MegatronGPTRPOModel, "loss_func", _followed_by(fault)):
                stage(f"fault {fault.__name__}", partial(model.validation_forward, batch))
    return found


def _followed_by(fault: Callable[..., None]) -> Callable[..., Any]:
    from nemo_rpo.megatron.model import MegatronGPTRPOModel

    loss_func = MegatronGPTRPOModel.loss_func

    def broken(*args: Any, **kwargs: Any) -> Any:
        loss = loss_func(*args, **kwargs)
        fault(loss)
        return loss

    return broken


def main() -> None:
    world, out, experts = map(Path, sys.argv[1:])
    fake_gpu.install()
    start_groups()
    found = {}
    for number, (name, overrides) in enumerate(SCENARIOS.items()):
        data = "rankings.jsonl" if name == "rankings" else "train.jsonl"
        given = [*places(world, out / "run", data), *overrides]
        if name.startswith("experts"):
            given.append(f"pretrained_checkpoint.restore_from_path={experts / 'one_expert'}")
        found[name] = rehearse(given, faults=number == 0)
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
