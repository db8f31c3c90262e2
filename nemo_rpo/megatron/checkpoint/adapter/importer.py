"""A folder of peft's → the adapters of this rank's model chunks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import MATRICES, SETTING, targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.adapter_mapping import adapter_tensors
from nemo_rpo.megatron.checkpoint.adapter.description import PEFT_WEIGHTS, SINGLE_EXPERTS
from nemo_rpo.megatron.checkpoint.adapter.fused_experts import FusedTensor, fused_tensors
from nemo_rpo.megatron.checkpoint.huggingface.importer import fill_shards
from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import load_reward_head
from nemo_rpo.megatron.checkpoint.huggingface.sharding import adapter_shards
from nemo_rpo.megatron.checkpoint.huggingface.weights import open_safetensors


class PeftWeights:
    """The tensors of ``adapter_model.safetensors``, those of experts apart; every rank checks all of them alike.

    ``fused``: peft's tensors of all experts, which are looked into.
    """

    def __init__(self, path: Path, copies: Mapping[str, Sequence[str]], fused: Callable[[bool], Sequence[FusedTensor]]):
        self.path, self._copies, self._file = path, copies, open_safetensors(path)
        self._stored = set(self._file.keys())
        self._fused = self._as_stored(fused)
        self._within = {
            name: (one, number, block)
            for one in self._fused
            for number, blocks in enumerate(one.blocks)
            for name, block in blocks.items()
        }
        self._last: tuple[str, Tensor] | None = None

    def _as_stored(self, fused: Callable[[bool], Sequence[FusedTensor]]) -> Sequence[FusedTensor]:
        """Gate and up may share their A in the folder, whatever the run's adapters do."""
        each_its_own, sharing = fused(True), fused(False)
        shapes = {one.name: self._shape(one.name) for one in sharing if one.name in self._stored}
        return sharing if shapes == {one.name: one.stored_shape for one in sharing} else each_its_own

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Raises :class:`CheckpointError`: a tensor is missing, of another shape, or left over."""
        if any(re.search(r"\.experts\.\d+\.", name) for name in self._stored):
            raise CheckpointError(f"{self.path} {SINGLE_EXPERTS}")
        copied = {copy for copies in self._copies.values() for copy in copies}
        expected = {name: shape for name, shape in shapes.items() if name not in self._within}
        expected |= {one.name: one.stored_shape for one in self._fused}
        for name, shape in expected.items():
            if name not in self._stored:
                raise CheckpointError(f"{self.path} has no tensor {name}, which {SETTING} calls for")
            if (found := self._shape(name)) != shape:
                self._check_parts(name, found)
                raise CheckpointError(f"{self.path}: {name} is {list(found)}, but its base makes it {list(shape)}")
        if strange := sorted(self._stored - expected.keys() - copied):
            raise CheckpointError(f"{self.path}: tensor {strange[0]} has no place in the adapters of {SETTING}")
        for name, copies in self._copies.items():
            for copy in copies:
                if copy not in self._stored or not torch.equal(*map(self._file.get_tensor, (name, copy))):
                    matrices = ",".join(matrix for of in MATRICES.values() for matrix in of)
                    raise ConfigError(
                        f"{self.path} has an A of its own for each matrix ({copy}): name them in {SETTING}, of "
                        f"{matrices}, instead of Megatron's fused layers"
                    )
        for one in self._fused:
            if one.outward and not one.is_apart(self._file.get_tensor(one.name)):
                raise ConfigError(
                    f"{self.path}: {one.name} has numbers outside of the matrices of {SETTING}: name "
                    "experts.linear_fc1 there, and set model.peft.lora_tuning.adapter_dim to the rank of its A"
                )

    def _check_parts(self, name: str, found: tuple[int, ...]) -> None:
        for one in self._fused:
            twice = one.shape[0] * 2 ** (not one.outward), one.shape[1] * 2**one.outward
            if one.name == name and found == replace(one, shape=twice).stored_shape:
                raise ConfigError(
                    f"{self.path} has an A of its own for an expert's gate and up ({name}): name experts.gate_proj and "
                    f"experts.up_proj in {SETTING}, instead of experts.linear_fc1"
                )

    def read(self, name: str, block: tuple[slice, ...]) -> Tensor:
        """The ``block`` of tensor ``name``, which may be an expert's own, on the CPU."""
        if name not in self._within:
            return self._file.get_slice(name)[block]
        one, expert, within = self._within[name]
        return self._of_experts(one)[expert][within][block]

    def _of_experts(self, one: FusedTensor) -> Tensor:
        """Kept until another one is asked for: experts are read one after the other."""
        if self._last is None or self._last[0] != one.name:
            self._last = one.name, one.of_experts(self._file.get_tensor(one.name)).contiguous()
        return self._last[1]


def load_peft(chunks: Sequence[torch.nn.Module], folder: Path, architecture: GPTArchitecture, peft: PeftConfig) -> None:
    """Fills the adapters of ``chunks`` in place, whatever the layout; each rank reads its own slices. A reward head
    beside them is filled too, where the folder has one. Issues no collective.

    Raises:
        CheckpointError, ConfigError: on every rank alike, where the folder's tensors are not those of the adapters.
    """
    targets = targets_in(architecture, peft.lora_tuning.target_modules)
    base, rank = megatron_tensors(architecture), peft.lora_tuning.adapter_dim
    made, fused = adapter_tensors(base, targets, rank), partial(fused_tensors, base, targets, rank)
    weights = PeftWeights(folder / PEFT_WEIGHTS, made.copies, fused)
    weights.check(hf_shapes(made.tensors), tied=False)
    fill_shards(sorted(adapter_shards(chunks), key=lambda shard: shard.key), made.tensors, weights)
    load_reward_head(chunks, folder)
