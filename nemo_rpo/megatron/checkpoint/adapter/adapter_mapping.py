"""Which rows of which tensor of peft's make up each tensor of the adapters.

B has the rows of its layer's weight, so its runs are the weight's under peft's names. A is a stack of the parts' A; a
part that stands for several matrices (``linear_qkv`` as a whole) has one A, which peft stores once for each of them.
Experts are told apart here, as in the base's files; in peft's they are one tensor (:mod:`.fused_experts`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nemo_rpo.config.adapters.targets import ALL_MATRICES, EXPERTS, MLP, Targets
from nemo_rpo.megatron.checkpoint.adapter.fused_experts import peft_name
from nemo_rpo.megatron.checkpoint.huggingface.tensors import MegatronTensor, RowRun
from nemo_rpo.megatron.network.lora.adapter import ADAPTER


@dataclass(frozen=True)
class AdapterTensors:
    """The adapters' tensors, and names of peft's that hold the same numbers: ``copies[name]`` equals ``name``."""

    tensors: list[MegatronTensor]
    copies: dict[str, list[str]]


def adapter_tensors(base: Iterable[MegatronTensor], targets: Targets, rank: int) -> AdapterTensors:
    """Of the adapters of ``targets`` beside the model whose tensors are ``base``."""
    found, copies = [], {}
    for tensor in base:
        *folders, layer, kind = ["", *tensor.key.split(".")]
        layer = layer if tensor.expert is None else f"{EXPERTS}.{layer}"
        if kind != "weight" or layer not in targets or (layer in MLP and "shared_experts" in folders):
            continue
        parts, stem = targets[layer], tensor.key.removesuffix("weight") + ADAPTER
        stems = dict.fromkeys(run.name.removesuffix("weight") for run in tensor.runs)
        names = dict(zip(ALL_MATRICES[layer], stems, strict=True))
        named = [[peft_name(names[matrix], "A") for matrix in part] for part in parts]
        if tensor.expert is None:
            copies |= {first: sorted(others) for first, *others in named if others}
        runs = tuple(RowRun(first, 0, rank) for first, *_ in named)
        found.append(MegatronTensor(f"{stem}.linear_in.weight", tensor.layer, runs, tensor.columns, tensor.expert))
        adapted = {names[matrix] for part in parts for matrix in part}
        rows = tuple(
            RowRun(peft_name(of, "B"), run.start, run.length)
            for run in tensor.runs
            if (of := run.name.removesuffix("weight")) in adapted
        )
        found.append(MegatronTensor(f"{stem}.linear_out.weight", tensor.layer, rows, rank, tensor.expert))
    return AdapterTensors(found, copies)
