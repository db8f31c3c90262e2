"""Which rows of which tensor of peft's make up each tensor of the adapters.

B has the rows of its layer's weight, so its runs are the weight's under peft's names. A is a stack of the parts' A; a
part that stands for several matrices (``linear_qkv`` as a whole) has one A, which peft stores once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nemo_rpo.config.adapters.targets import Targets
from nemo_rpo.megatron.checkpoint.huggingface.tensors import MegatronTensor, RowRun
from nemo_rpo.megatron.network.lora.adapter import ADAPTER
from nemo_rpo.megatron.network.lora.attachment import EXPERTS

_PREFIX = "base_model.model."


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
        if kind != "weight" or layer not in targets or EXPERTS.intersection(folders):
            continue
        parts, stem = targets[layer], tensor.key.removesuffix("weight") + ADAPTER
        names = {run.name.split(".")[-2]: run.name.removesuffix("weight") for run in tensor.runs}
        named = [[_peft(names.get(matrix, next(iter(names.values()))), "A") for matrix in part] for part in parts]
        copies |= {first: sorted({*others} - {first}) for first, *others in named if {*others} - {first}}
        runs = tuple(RowRun(first, 0, rank) for first, *_ in named)
        found.append(MegatronTensor(f"{stem}.linear_in.weight", tensor.layer, runs, tensor.columns))
        adapted = {matrix for part in parts for matrix in part}
        rows = tuple(_rows(tensor.runs, adapted))
        found.append(MegatronTensor(f"{stem}.linear_out.weight", tensor.layer, rows, rank))
    return AdapterTensors(found, copies)


def _rows(runs: Iterable[RowRun], adapted: set[str]) -> Iterator[RowRun]:
    for run in runs:
        if run.name.split(".")[-2] in adapted:
            yield RowRun(_peft(run.name.removesuffix("weight"), "B"), run.start, run.length)


def _peft(stem: str, which: str) -> str:
    return f"{_PREFIX}{stem}lora_{which}.weight"
