"""What adapters of experts are compared with, on the ranks of ``ranks_experts.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from engine import Engine
from grouped_experts import group_experts
from megatron.core.dist_checkpointing.dict_utils import nested_values
from torch import Tensor

from nemo_rpo.config.adapters.targets import targets_in
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.checkpoint.huggingface.sharding import adapter_shards
from nemo_rpo.megatron.network.build import build_model_chunks
from nemo_rpo.megatron.network.lora.attachment import adapters, attach, start_afresh
from nemo_rpo.megatron.network.lora.sharded import sharded_adapters
from nemo_rpo.megatron.network.lora.switch import switched_off


def bare(step: Engine) -> torch.nn.Module:
    """The first chunk, without wrappers."""
    chunk = step.model.model[0]
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def against_merged_matrices(step: Engine) -> dict[str, float]:
    """The largest differences of a layer of experts, output and gradients for random upstream ones, over the largest
    number, to the same layer with W + scale B A in the place of W, written out here.
    """
    [layer] = [layer.mlp for layer in bare(step).decoder.layers if hasattr(layer.mlp, "experts")][:1]
    torch.manual_seed(5)
    x = torch.randn(40, 2, 32, requires_grad=True)
    upstream = torch.randn(40, 2, 32)
    beside = [(name, weight, adapter) for name, weight, adapter in _named(layer)]
    ours = [of for _, _, adapter in beside for of in (adapter.linear_in.weight, adapter.linear_out.weight)]
    with torch.no_grad():
        for of in ours:
            of.normal_(std=0.3)
    out = layer(x)[0]
    found = torch.autograd.grad(out, [x, *ours], upstream)
    copies = [of.detach().clone().requires_grad_() for of in ours]
    pairs = zip(copies[::2], copies[1::2], strict=True)
    merged = {
        name: weight.detach() + 2.0 * (outward @ inward)
        for (name, weight, _), (inward, outward) in zip(beside, pairs, strict=True)
    }
    with switched_off([bare(step)]):
        twin = torch.func.functional_call(layer, merged, (x,))[0]
    expected = torch.autograd.grad(twin, [x, *copies], upstream)
    moved = [float(of.abs().max()) for of in expected[1:]]
    return {
        "adapters": len(beside),
        "reached": sum(value > 1e-3 for value in moved) / len(moved),
        "output": _apart([out.detach()], [twin.detach()]),
        "gradients": _apart(found, expected),
    }


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    largest = max(float(of.abs().max()) for of in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / largest


def _named(layer: torch.nn.Module) -> Iterator[tuple[str, Tensor, Any]]:
    of = {id(weight): adapter for weight, adapter in adapters([layer])}
    for name, weight in layer.named_parameters():
        if id(weight) in of:
            yield name, weight, of[id(weight)]


def grouped(step: Engine, cfg: RunConfig) -> dict[str, bool]:
    """Whether adapters beside grouped experts are those beside experts that run one after the other."""
    chunk, peft = bare(step), cfg.model.peft
    cfg.model.peft = type(peft)()
    [other] = build_model_chunks(step.model.architecture, cfg)
    cfg.model.peft = peft
    base = {name: of for name, of in chunk.state_dict().items() if ".adapter." not in name}
    other.load_state_dict(base)
    group_experts(other)
    targets = targets_in(step.model.architecture, peft.lora_tuning.target_modules)
    attach(other, other.config, peft, targets, cfg.model.seed)
    start_afresh([chunk])
    said = {"starts alike": _equal(chunk, other)}
    with torch.no_grad():
        for model in (chunk, other):
            for shard in adapter_shards([model]):
                torch.manual_seed(len(shard.key) + 7 * (shard.expert or 0) + 100 * (shard.layer or 0))
                shard.data.normal_(std=0.3)
    torch.manual_seed(5)
    x, upstream = torch.randn(2, 8, 2, 32)
    for mine, theirs in zip(chunk.decoder.layers, other.decoder.layers, strict=True):
        if hasattr(mine.mlp, "experts"):
            one, two = mine.mlp(x)[0], theirs.mlp(x)[0]
            with switched_off([other]), torch.no_grad():
                off = theirs.mlp(x)[0]
            alike = torch.allclose(one, two, atol=1e-5) and _apart(*_gradients(mine, theirs, one, two, upstream)) < 1e-5
            said["same output and gradients"] = alike and said.get("same output and gradients", True)
            said["moved"] = bool((two - off).abs().max() > 0.01)
    names = {id(of): name for name, of in other.named_parameters()}
    said["names"] = all(names.get(id(_data(entry))) == name for name, entry in sharded_adapters(other).items())
    said["held alike"] = _equal(chunk, other) and _places(chunk) == _places(other)
    return said


def _gradients(mine: Any, theirs: Any, one: Tensor, two: Tensor, upstream: Tensor) -> list[list[Tensor]]:
    """Of the adapters, those of A and B of each expert in turn, layer by layer."""
    found = []
    for layer, out in ((mine, one), (theirs, two)):
        by_layer = sorted((adapter for _, adapter in adapters([layer.mlp])), key=lambda adapter: not adapter.column)
        weights = [weight for adapter in by_layer for weight in (adapter.linear_in.weight, adapter.linear_out.weight)]
        found.append(list(torch.autograd.grad(out, weights, upstream)))
    return found


def _data(entry: Any) -> Tensor:
    return entry.data


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    held = [{(s.place, s.offset): s.data for s in adapter_shards([model])} for model in (one, other)]
    return held[0].keys() == held[1].keys() and all(torch.equal(held[0][at], held[1][at]) for at in held[0])


def _places(chunk: torch.nn.Module) -> set[tuple[Any, ...]]:
    entries = (entry for entry in sharded_adapters(chunk).values())
    blocks = (b for e in entries for b in (nested_values(e.build()) if hasattr(e, "build") else [e]))
    return {(b.key, b.global_shape, b.global_offset, b.replica_id) for b in blocks}
