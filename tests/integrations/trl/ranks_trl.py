"""Trains on all processes it is started on; the first writes losses and reliabilities to the file it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from integrations.trl.world import arguments, logged, rows, trainer
from nemo_rpo.launch import call_and_leave

SETTINGS = {"ema": {"sweep": "end"}, "buffer": {"base_loss": "cpo", "buffer": {"refit_every": 2, "min_gain": -1e9}}}


def main() -> int:
    model, out, batch, accumulation = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    found = {}
    for estimator, rpo in SETTINGS.items():
        args = arguments(
            out.parent / f"{out.stem}-{estimator}",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=-1,
            num_train_epochs=2,
        )
        run = trainer(model, args, rows(22), {"estimator": estimator, **rpo})
        run.train()
        found[estimator] = {
            "loss": logged(run, "loss"),
            "eta_min": logged(run, "em/eta_min"),
            "eta": run.em.eta.tolist(),
            "label_counts": run.em.label_counts.tolist(),
        }
        if estimator == "buffer":
            found[estimator]["margins"] = run.em.state_dict()["margins"].tolist()
    if run.accelerator.is_main_process:
        out.write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    # The models hold the group: its threads would outlive the interpreter, which then aborts.
    call_and_leave(main)
