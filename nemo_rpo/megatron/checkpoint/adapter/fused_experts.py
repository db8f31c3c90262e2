"""Adapters of experts as peft keeps them: one tensor for all experts of a layer, as transformers keeps their weights.

With E experts, r the rank and P parts of gate and up that have an A of their own, peft's A and B of ``gate_up_proj``:

    A [E P r, h]       the experts' A [P r, h] one after the other
    B [2 f, P r E]     the experts' B side by side, column by column: column ρ E + e is column ρ of expert e

A part's A comes before the next one's, and B is 0 where rows of one part meet columns of another, so that P = 2 doubles
the rank (and α with it: ``rank_pattern``, ``alpha_pattern``). ``down_proj`` has one part. The wrapper of ``down_proj``
stands around that of ``gate_up_proj``, which is then its ``base_layer``. (peft 0.21, ``target_parameters``.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nemo_rpo.config.adapters.targets import ALL_MATRICES, EXPERTS, Targets

if TYPE_CHECKING:
    from torch import Tensor

    from nemo_rpo.megatron.checkpoint.huggingface.tensors import MegatronTensor

PREFIX = "base_model.model."
GATE_UP, DOWN = "gate_up_proj", "down_proj"
_PARAMETERS = {f"{EXPERTS}.linear_fc1": GATE_UP, f"{EXPERTS}.linear_fc2": DOWN}


def peft_name(stem: str, which: str) -> str:
    """Of A or B (``which``) beside the matrix whose name is ``stem`` and ``weight``."""
    return f"{PREFIX}{stem}lora_{which}.weight"


@dataclass
class FusedTensor:
    """One of peft's tensors of all experts of a layer.

    Attributes:
        shape: of one expert's matrix in it: A ``[P r, i]``, B ``[o, P r]``.
        blocks: of each expert the names of its own tensors, and where they stand in its matrix.
    """

    name: str
    outward: bool
    shape: tuple[int, int]
    blocks: list[dict[str, tuple[slice, slice]]] = field(default_factory=list)

    @property
    def stored_shape(self) -> tuple[int, int]:
        """As peft keeps it."""
        rows, columns = self.shape
        return (rows, columns * len(self.blocks)) if self.outward else (rows * len(self.blocks), columns)

    def fused(self, own: Mapping[str, Tensor]) -> Tensor:
        """From the experts' own tensors by name."""
        made = next(iter(own.values())).new_zeros(len(self.blocks), *self.shape)
        for matrix, blocks in zip(made, self.blocks, strict=True):
            for name, block in blocks.items():
                matrix[block] = own[name]
        return made.permute(1, 2, 0).flatten(1) if self.outward else made.flatten(0, 1)

    def of_experts(self, stored: Tensor) -> Tensor:
        """From peft's tensor, each expert's matrix ``[E, *shape]``."""
        if self.outward:
            return stored.unflatten(1, (self.shape[1], len(self.blocks))).permute(2, 0, 1)
        return stored.unflatten(0, (len(self.blocks), self.shape[0]))

    def is_apart(self, stored: Tensor) -> bool:
        """Whether ``stored`` is 0 outside the blocks: no row reads an A that is not its own."""
        rest = self.of_experts(stored).clone()
        for matrix, blocks in zip(rest, self.blocks, strict=True):
            for block in blocks.values():
                matrix[block] = 0
        return not rest.any()


def fused_tensors(
    base: Iterable[MegatronTensor], targets: Targets, rank: int, each_its_own: bool = True
) -> list[FusedTensor]:
    """Those of the experts among ``targets``, beside the model whose tensors are ``base``; none where they have none.

    ``each_its_own``: parts have an A each, as the targets say; else they share one in peft's tensor.
    """
    found: dict[tuple[int | None, str], list[FusedTensor]] = {}
    for tensor in base:
        layer = f"{EXPERTS}.{tensor.key.split('.')[-2]}"
        if tensor.expert is None or layer not in targets:
            continue
        stems = [run.name.removesuffix("weight") for run in tensor.runs]
        parts, of_matrix = targets[layer], dict(zip(ALL_MATRICES[layer], stems, strict=True))
        width = len(parts) * rank if each_its_own else rank
        columns = {p: slice(p * rank, (p + 1) * rank) if each_its_own else slice(rank) for p in range(len(parts))}
        inward = {
            peft_name(of_matrix[part[0]], "A"): (columns[number], slice(None)) for number, part in enumerate(parts)
        }
        outward, first = {}, 0
        for matrix, run in zip(ALL_MATRICES[layer], tensor.runs, strict=True):
            for number, part in enumerate(parts):
                if matrix in part:
                    rows = slice(first, first + run.length)
                    outward[peft_name(of_matrix[matrix], "B")] = (rows, columns[number])
            first += run.length
        here = found.setdefault((tensor.layer, layer), _new(tensor, layer, targets, width))
        for one, blocks in zip(here, (inward, outward), strict=True):
            one.blocks.append(blocks)
    return [one for pair in found.values() for one in pair]


def _new(tensor: MegatronTensor, layer: str, targets: Targets, width: int) -> list[FusedTensor]:
    inner = "base_layer." if _PARAMETERS[layer] == GATE_UP and f"{EXPERTS}.linear_fc2" in targets else ""
    stem = f"model.layers.{tensor.layer}.mlp.experts.{inner}"
    return [
        FusedTensor(peft_name(stem, "A"), False, (width, tensor.columns)),
        FusedTensor(peft_name(stem, "B"), True, (tensor.rows, width)),
    ]


def fuse(fused: Sequence[FusedTensor], tensors: dict[str, Tensor]) -> None:
    """Puts peft's tensors into ``tensors`` in the place of the experts' own."""
    for one in fused:
        tensors[one.name] = one.fused(tensors)
        for name in {name for blocks in one.blocks for name in blocks}:
            del tensors[name]


def target_parameters(targets: Targets) -> list[str]:
    """What peft is told to adapt in experts."""
    return [f"mlp.experts.{parameter}" for layer, parameter in _PARAMETERS.items() if layer in targets]


def patterns(targets: Targets, rank: int, alpha: float) -> dict[str, dict[str, float]]:
    """Rank and α of ``gate_up_proj`` where they are twice the others'; empty otherwise."""
    if len(targets.get(f"{EXPERTS}.linear_fc1", ())) < 2:
        return {"rank_pattern": {}, "alpha_pattern": {}}
    return {"rank_pattern": {GATE_UP: 2 * rank}, "alpha_pattern": {GATE_UP: 2 * alpha}}
