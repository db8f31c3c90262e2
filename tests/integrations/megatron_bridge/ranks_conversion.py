"""Each rank of ``test_conversion.py``: the same Hugging Face folder through AutoBridge and through the own mapping."""

# ruff: noqa: E402 (what makes Megatron-Bridge run on a CPU comes before its import)
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bridge_cpu

bridge_cpu.install()

import safetensors.torch
import torch
import torch.distributed as dist
from bridge_runs import tiny_model
from megatron.bridge import AutoBridge
from megatron.bridge.training import initialize

from nemo_rpo.integrations.megatron_bridge.model import take_over_head
from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf, read_hf_config
from nemo_rpo.megatron.checkpoint.huggingface.exporter import export_hf
from nemo_rpo.megatron.checkpoint.huggingface.importer import load_hf_weights


def parameters(model: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{i}.{name}": p.detach().clone() for i, chunk in enumerate(model) for name, p in chunk.named_parameters()}


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def build(folder: Path, layout: dict[str, int]) -> list[torch.nn.Module]:
    provider = tiny_model(folder)
    for name, size in layout.items():
        setattr(provider, name, size)
    provider.finalize()
    provider.initialize_model_parallel(seed=1)
    return provider.provide_distributed_model(wrap_with_ddp=False)


@torch.no_grad()
def compared(folder: Path, out: Path, layout: dict[str, int]) -> dict[str, Any]:
    """What both ways make of ``folder``, and of the weights that came in."""
    architecture = architecture_from_hf(folder)
    model = build(folder, layout)
    take_over_head(model, architecture.vocab_size, "chunked")
    bridge = AutoBridge.from_hf_pretrained(folder, torch_dtype=torch.float32)
    bridge.load_hf_weights(model)
    theirs = parameters(model)
    for parameter in (p for chunk in model for p in chunk.parameters()):
        parameter.fill_(torch.nan)
    load_hf_weights(model, folder, architecture)
    ours = parameters(model)
    exported = {name: weight.clone() for name, weight in bridge.export_hf_weights(model, cpu=True, show_progress=False)}
    export_hf(model, architecture, out, source_config=read_hf_config(folder))
    dist.barrier()
    written = {k: v for file in out.glob("*.safetensors") for k, v in safetensors.torch.load_file(file).items()}
    source = {k: v for file in folder.glob("*.safetensors") for k, v in safetensors.torch.load_file(file).items()}
    return {
        "imports_equal": same(ours, theirs),
        "parameters": len(ours),
        "exports_equal": dist.get_rank() != 0 or same({k: exported[k] for k in source}, written),
        "round_trip": dist.get_rank() != 0 or same(source, written),
    }


def main() -> None:
    """``argv``: the folder of the models, the folder to write to, a JSON list of [model, layout]."""
    models, out = Path(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    for number, (name, layout) in enumerate(json.loads(sys.argv[3])):
        found = compared(models / name, out / f"{number}", layout)
        (out / f"{number}.{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
        dist.barrier()
        initialize.destroy_global_state()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
