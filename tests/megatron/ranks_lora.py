"""What each rank of ``test_lora.py`` does: adapters beside a tiny model, stepped, switched off, written and read."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from nemo_rpo.megatron import cpu

cpu.install()

import torch
import torch.distributed as dist
from engine import Engine, config, engine, places
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from safetensors.torch import save_file

from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.checkpoint.adapter.importer import load_peft
from nemo_rpo.megatron.checkpoint.huggingface.sharding import adapter_shards
from nemo_rpo.megatron.compat.megatron_optimizer import moved_numbers
from nemo_rpo.megatron.generate.without_cache import pipeline_forward
from nemo_rpo.megatron.network.lora.attachment import adapters
from nemo_rpo.megatron.network.lora.switch import merged, switched_off, trained_weights
from nemo_rpo.training.adapters.adapter_facts import facts
from nemo_rpo.training.outputs import exports
from nemo_rpo.training.run import train


def logits(chunks: list[torch.nn.Module]) -> torch.Tensor | None:
    """``[b, s, V]`` of fixed tokens on the last stage."""
    ids = torch.randint(3, 43, (2, 24), generator=torch.Generator().manual_seed(1))
    found = pipeline_forward(chunks, ids.chunk(2), lambda out, _: gather_from_tensor_model_parallel_region(out))
    return torch.cat(found).float()[..., :43].contiguous() if parallel.is_last_stage() else None


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is None or torch.equal(one, other)


@torch.no_grad()
def shake(chunks: list[torch.nn.Module]) -> None:
    """B of numbers that depend on the place in the whole tensor alone."""
    for shard in adapter_shards(chunks):
        if "linear_out" in shard.key:
            place = f"{shard.key}{shard.layer}" + ("" if shard.expert is None else f" {shard.expert}")
            seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "big")
            whole = torch.randn(shard.global_shape, generator=torch.Generator().manual_seed(seed)) * 0.05
            block = tuple(slice(o, o + n) for o, n in zip(shard.offset, shard.data.shape, strict=True))
            shard.data.copy_(whole[block])


def pieces(chunks: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    """The adapters of this rank by place."""
    found = {}
    for s in adapter_shards(chunks):
        offset, shape = (",".join(map(str, numbers)) for numbers in (s.offset, s.global_shape))
        found[f"{s.key}@{s.layer} {s.expert}@{offset}@{shape}"] = s.data.clone()
    return found


@torch.no_grad()
def put_gradients(chunks: list[torch.nn.Module]) -> None:
    """In the place of the adapters, so that they are found under their names."""
    for _, adapter in adapters(chunks):
        for parameter in adapter.parameters():
            parameter.copy_(parameter.main_grad)


def look(step: Engine, out: Path, name: str) -> dict[str, Any]:
    """Everything about one layout; figures for the test, files beside them."""
    chunks, cfg = step.model.model, step.cfg
    said: dict[str, Any] = {"trained": trained_weights(chunks), "log": facts(cfg, step.model)}
    said["trained here"] = sum(of.numel() for chunk in chunks for of in chunk.parameters() if of.requires_grad)
    with step.model.evaluating():
        fresh = logits(chunks)
        with switched_off(chunks):
            base = logits(chunks)
        said["fresh is base"] = same(fresh, base)
        shake(chunks)
        shaken = logits(chunks)
        with switched_off(chunks):
            said["off is base"] = same(logits(chunks), base)
        before = [parameter.detach().clone() for parameter in step.model.model[0].parameters()]
        with merged(chunks):
            worked_in = logits(chunks)
        said["merged"] = 0.0 if shaken is None else float((worked_in - shaken).abs().max())
        said["unmerged"] = all(map(torch.equal, before, step.model.model[0].parameters()))
        said["moved"] = 1.0 if shaken is None else float((shaken - base).abs().max())
    if parallel.is_last_stage() and parallel.data_parallel_rank() == 0:
        save_file({"base": base, "shaken": shaken}, out / f"{name}.logits")
    in_optimizer = {id(moved.parameter) for moved in moved_numbers(step.model.optimizer)}
    ours = {id(parameter) for _, adapter in adapters(chunks) for parameter in adapter.parameters()}
    said["optimizer holds adapters alone"] = bool(ours) and in_optimizer == ours
    exports.write(cfg, step.model, out / f"{name}.run")
    held = pieces(chunks)
    with torch.no_grad():
        for shard in adapter_shards(chunks):
            shard.data.zero_()
    load_peft(chunks, out / f"{name}.run" / "adapter", step.model.architecture, cfg.model.peft)
    now = pieces(chunks)
    said["read back"] = all(torch.equal(held[key], now[key]) for key in held)
    step.model.prepare_for_training_step()
    step.model.get_loss_and_metrics(step.batch(0), forward_only=False)
    put_gradients(chunks)
    save_file(pieces(chunks), out / f"{name}.gradients.{dist.get_rank()}")
    return said


def main() -> None:
    """``argv``: the world's folder, the folder to write to, a JSON object of name → overrides of what is looked at, and
    a list of (name, run whose checkpoint of step 3 it goes on from or null, overrides) of what is trained.
    """
    world, out, rank = Path(sys.argv[1]), Path(sys.argv[2]), os.environ["RANK"]
    looked, trained = json.loads(sys.argv[3]), json.loads(sys.argv[4])
    for name, overrides in looked.items():
        with engine([*places(world, out / "engine"), *overrides]) as step:
            said = look(step, out, name)
        (out / f"{name}.{rank}.json").write_text(json.dumps(said))
    for name, begun, overrides in trained:
        if begun is not None and rank == "0":
            shutil.copytree(out / begun / "checkpoints" / "step=00000003", out / f".{name}/checkpoints/step=00000003")
            (out / f".{name}").rename(out / name)
        while begun is not None and not (out / name).exists():
            time.sleep(0.01)
        train(config([*places(world, out / name), *overrides]))


if __name__ == "__main__":
    main()
