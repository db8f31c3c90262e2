"""The rank of ``test_dropout.py``: what is frozen or measured, asked twice, in a model that trains with dropout."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nemo_rpo.megatron import cpu

cpu.install()

import torch
from engine import Engine, engine, places

from nemo_rpo.megatron.step.forward import PREVIOUS_KEYS, REFERENCE_KEYS
from nemo_rpo.training.reference.step0 import check_step0

DROPOUT = "model.hidden_dropout=0.1"
REFERENCES = ("swapped", "resident", "cached")


def log_probs(run: Engine, keys: tuple[str, str]) -> list[list[float]]:
    """Of the first global batch, as the frozen policy gives them now."""
    return [micro_batch[key].tolist() for micro_batch in run.batch(0) for key in keys]


def modes(run: Engine) -> list[bool]:
    return [module.training for chunk in run.model.model for module in chunk.modules()]


def validation(run: Engine) -> dict[str, float]:
    run.model.prepare_for_validation_step()
    for batch in run.batches("validation"):
        run.model.validation_forward(batch)
    return run.model.finish_validation_step()


def experiment(overrides: list[str], keys: tuple[str, str]) -> dict[str, Any]:
    with engine([*overrides, DROPOUT]) as run:
        run.model.prepare_for_training_step()
        before = modes(run)
        assert all(before)
        found: dict[str, Any] = {"frozen": [log_probs(run, keys) for _ in range(2)]}
        found["policy"] = [
            [micro_batch["chosen"].tolist() for micro_batch in run.model.get_logprob_batch(run.batch(0))]
            for _ in range(2)
        ]
        check_step0(run.model, run.batch(0), run.cfg)
        found["validation"] = [validation(run) for _ in range(2)]
        found["training mode after measuring"] = modes(run) == before
        try:
            with run.model.evaluating():
                raise KeyError
        except KeyError:
            found["training mode after a failure"] = modes(run) == before
        metrics, outcome = run.train_step(run.batch(0))
        assert outcome.updated and torch.isfinite(torch.tensor(metrics["loss"]))
        found["largest margin in the first step"] = metrics["em/abs_delta_mean"]
    return found


def main() -> None:
    """``argv``: the world's folder, the folder to write ``found.json`` to."""
    world, out = Path(sys.argv[1]), Path(sys.argv[2])
    files = [*places(world, out / "run"), f"model.data.data_prefix.validation={world / 'validation.jsonl'}"]
    found = {name: experiment([*files, f"model.rpo.reference={name}"], REFERENCE_KEYS) for name in REFERENCES}
    start = f"model.rpo.previous_iterate={world / 'model'}"
    nash = ["model.rpo.base_loss=inpo", "model.rpo.link_tau=100", "model.rpo.reference=swapped", start]
    found["previous iterate"] = experiment([*files, *nash], PREVIOUS_KEYS)
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
