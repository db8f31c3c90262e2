"""Each rank of ``test_reference_cache.py``: log-probs computed once beside those of the live reference."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from nemo_rpo.megatron import cpu

cpu.install()

import numpy as np
import torch
from engine import Engine, engine, places
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.step.forward import REFERENCE_KEYS
from nemo_rpo.training.reference import precompute


def random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *get_cuda_rng_tracker().get_states().values()]


def distance(run: Engine, split: str, cached: precompute.CachedReference) -> float:
    """Largest difference between cached and live log-probs of this rank's pairs; 0 where a stage has none."""
    worst = 0.0
    for batch in run.batches(split):
        live = [[micro_batch.get(key) for key in REFERENCE_KEYS] for micro_batch in batch]
        cached.add_ref_policy_logprobs(batch)
        if parallel.is_last_stage():
            for micro_batch, sides in zip(batch, live, strict=True):
                for key, side in zip(REFERENCE_KEYS, sides, strict=True):
                    difference = (micro_batch[key] - side)[micro_batch["valid"]].abs()
                    worst = max(worst, difference.max().item() if len(difference) else 0.0)
    return worst


def experiment(overrides: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    with engine(overrides) as run:
        for split in ("sweep", "validation"):
            data, before = run.splits[split], random_state()
            batches = data.dataset.batches(range(len(data.dataset)))
            logprobs = precompute.compute(run.model, batches, data.cache.scored_lengths(), per_token=True)
            cached = precompute.CachedReference(logprobs)
            found[f"{split}: random state"] = all(map(torch.equal, before, random_state()))
            found[f"{split}: log-probs"] = [logprobs.chosen.tolist(), logprobs.rejected.tolist()]
            ends = data.cache.scored_lengths().reshape(-1).cumsum()
            pieces = [piece.tolist() for piece in np.split(logprobs.tokens, ends[:-1])]
            found[f"{split}: per token"] = [list(pair) for pair in zip(pieces[::2], pieces[1::2], strict=True)]
            found[f"{split}: same batches"] = distance(run, split, cached)
            if split == "sweep":
                found["other batches"] = distance(run, "train", cached)
    return found


def main() -> None:
    """``argv``: the world's folder, the folder to write ``NAME.RANK.json`` to, a JSON object of name → overrides."""
    world, out, layouts = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    for name, overrides in layouts.items():
        files = [*places(world, out / "run"), f"model.data.data_prefix.validation={world / 'validation.jsonl'}"]
        found = experiment([*files, *overrides])
        (out / f"{name}.{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
