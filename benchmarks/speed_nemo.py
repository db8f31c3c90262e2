"""One process (or, under torchrun, one rank) of ``compare.py`` and ``gpu.py``: prints the time of each step of
nemo_rpo's engine, its tokens, and the most memory that a GPU had allocated.

Steps are those of ``nemo-rpo train`` in file order, from the batch's preparation to the optimizer's step.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from step_clock import CallClock, StepClock

from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_config, validate_parallel

EM_CALLS = ("posterior", "accumulate", "observe", "exchange", "commit", "rollback")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--annotators", type=int, help="votes by so many annotators instead of the data's")
    parser.add_argument("--operators", action="store_true", help="say what the steps' time went into")
    parser.add_argument("--no-update", action="store_true", help="leave the optimizer out: its state may not fit")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cfg = load_config(str(args.config), args.overrides, notify=lambda text: None)
    validate_config(cfg)
    validate_parallel(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    figures = train(cfg, args)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(figures))


def train(cfg: RunConfig, args: argparse.Namespace) -> dict[str, Any]:
    """``wall`` and ``cpu`` seconds, ``em`` (processor seconds in the EM's calls) and ``tokens`` of each step but the
    first, and their model FLOPs; ``device`` and ``device_bytes`` on a GPU.
    """
    from nemo_rpo.training.process.accelerator import use_accelerator

    use_accelerator(cfg)
    import torch

    from nemo_rpo.config.arithmetic.flops import step_flops
    from nemo_rpo.em import AnnotatorReliability
    from nemo_rpo.megatron import model as engine
    from nemo_rpo.megatron import parallel
    from nemo_rpo.training import data_of_run, setup
    from nemo_rpo.training.reference.source import find_references

    steps, annotators, clock, em_clock = args.steps, args.annotators, StepClock(args.operators), CallClock()
    torch.set_num_threads(args.threads)
    device = parallel.initialize(cfg)
    splits = data_of_run.open_splits(cfg)
    split = splits.pop("train")  # the same pairs as "sweep", shuffled
    architecture = setup.architecture_for(cfg, split.cache)
    model = setup.build_model(cfg, architecture, split.cache, steps, device)
    if annotators is not None:
        model.em = AnnotatorReliability(annotators, cfg.model.rpo, device)
    for call in EM_CALLS:
        em_clock.watch(model.em, call)
    em_clock.watch(engine, "reduce_to_all_ranks")  # the metrics travel with it, which they do without an EM too
    reference = find_references(cfg, model, splits)["sweep"]
    for batch in splits["sweep"].dataset.batches(range(steps)):
        if annotators is not None:
            for micro_batch in batch:
                micro_batch["annotator"] = torch.randint(annotators, micro_batch["annotator"].shape)
        reference.add_ref_policy_logprobs(batch)
        model.prepare_for_training_step()
        model.get_loss_and_metrics(batch, forward_only=False)
        if args.no_update:
            torch.cuda.synchronize()
        else:
            model.finish_training_step()
        clock.end_of_step()
        em_clock.end_of_step()
    figures: dict[str, Any] = clock.figures() | {"em": em_clock.seconds()}
    figures["tokens"] = [splits["sweep"].tokens(step) for step in range(1, steps)]
    frozen = model.needs.live_reference + model.needs.previous_iterate
    of_steps = (splits["sweep"].lengths(step) for step in range(1, steps))
    figures["flops"] = [step_flops(architecture, *lengths, frozen, head=model.needs.logps) for lengths in of_steps]
    if cfg.trainer.accelerator == "gpu":
        figures |= {"device": torch.cuda.get_device_name(), "device_bytes": torch.cuda.max_memory_allocated()}
    parallel.finalize()
    return figures


if __name__ == "__main__":
    main()
