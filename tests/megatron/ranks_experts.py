"""Training runs of mixtures of experts, one after the other on the same ranks; each leaves its figures of each step
and of validation, and how many weights each rank has.

``argv``: the world's folder, the folder to write to, and a JSON object of name → ``{"model", "overrides", "after",
"count", "validates"}``; of a run that goes on from another one ``after`` is that run's folder, or a checkpoint of it,
which is copied. What ``looks`` is not trained, but looked at as in ``ranks_lora.py``, and compared
(:mod:`expert_adapters`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from engine import config, places

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.training.logs.metrics import read_metrics

FIGURES = ("loss", "grad_norm", "margin", "em/posterior_mean")


def weights_of_ranks(cfg: RunConfig, dist: Any) -> list[tuple[int, int]]:
    """Pipeline stage and weights of each rank, of a model that is built and dropped."""
    from nemo_rpo.megatron import parallel
    from nemo_rpo.megatron.network.build import build_model_chunks
    from nemo_rpo.training.setup import starting_point, stored_architecture

    parallel.initialize(cfg)
    chunks = build_model_chunks(stored_architecture(starting_point(cfg), cfg), cfg)
    stage = dist.get_rank() * cfg.model.pipeline_model_parallel_size // dist.get_world_size()
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (stage, sum(p.numel() for chunk in chunks for p in chunk.parameters())))
    parallel.finalize()
    return found


def look_at(name: str, overrides: list[str], out: Path) -> None:
    import ranks_lora
    from engine import engine
    from expert_adapters import against_merged_matrices, grouped

    with engine(overrides) as step:
        said = ranks_lora.look(step, out, name)
        if "grouped" in name:
            said["grouped"] = grouped(step, step.cfg)
        if "merged" in name:
            said["twin"] = against_merged_matrices(step)
    (out / f"{name}.{os.environ['RANK']}.json").write_text(json.dumps(said), encoding="utf-8")


def main() -> None:
    world, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    from nemo_rpo.megatron import cpu

    cpu.install()
    import torch.distributed as dist

    from nemo_rpo.training.run import train

    rank0 = os.environ["RANK"] == "0"
    for name, run in runs.items():
        folder = out / name
        if run["after"] and rank0:
            after = Path(run["after"])
            shutil.copytree(after, folder / "checkpoints" / after.name if after.name.startswith("step=") else folder)
        given = [*places(world, folder), f"pretrained_checkpoint.restore_from_path={world / run['model']}"]
        if run["validates"]:
            held_out = world / "validation.jsonl"
            given += [f"model.data.data_prefix.validation={held_out}", "trainer.dpo.val_check_interval=1"]
        cfg = config([*given, *run["overrides"]])
        if run["looks"]:
            look_at(name, [*given, *run["overrides"]], out)
            continue
        weights = weights_of_ranks(cfg, dist) if run["count"] else None
        train(cfg)
        assert not dist.is_initialized()
        if rank0:
            rows = read_metrics(folder)
            found = [{figure: row[figure] for figure in FIGURES} for row in rows if row["split"] == "train"]
            held_out = [row["loss"] for row in rows if row["split"] == "val"]
            left = {"figures": found, "weights": weights, "held out": held_out}
            (out / f"{name}.json").write_text(json.dumps(left), encoding="utf-8")


if __name__ == "__main__":
    main()
