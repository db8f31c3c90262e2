"""A folder of peft's → the adapters of this rank's model chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import MATRICES, SETTING, targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.adapter_mapping import adapter_tensors
from nemo_rpo.megatron.checkpoint.adapter.description import PEFT_WEIGHTS
from nemo_rpo.megatron.checkpoint.huggingface.importer import fill_shards
from nemo_rpo.megatron.checkpoint.huggingface.mapping import hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import load_reward_head
from nemo_rpo.megatron.checkpoint.huggingface.sharding import adapter_shards
from nemo_rpo.megatron.checkpoint.huggingface.weights import open_safetensors


class _PeftWeights:
    """The tensors of ``adapter_model.safetensors``; every rank checks all of them alike."""

    def __init__(self, path: Path, copies: Mapping[str, Sequence[str]]) -> None:
        self.path, self._copies, self._file = path, copies, open_safetensors(path)

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Raises :class:`CheckpointError`: a tensor is missing, of another shape, or left over."""
        stored, copied = set(self._file.keys()), {copy for copies in self._copies.values() for copy in copies}
        for name, shape in shapes.items():
            if name not in stored:
                raise CheckpointError(f"{self.path} has no tensor {name}, which {SETTING} calls for")
            found = tuple(self._file.get_slice(name).get_shape())
            if found != shape:
                raise CheckpointError(f"{self.path}: {name} is {list(found)}, but its base makes it {list(shape)}")
        if strange := sorted(stored - shapes.keys() - copied):
            raise CheckpointError(f"{self.path}: tensor {strange[0]} has no place in the adapters of {SETTING}")
        for name, copies in self._copies.items():
            for copy in copies:
                if copy not in stored or not torch.equal(self._file.get_tensor(name), self._file.get_tensor(copy)):
                    matrices = ",".join(matrix for of in MATRICES.values() for matrix in of)
                    raise ConfigError(
                        f"{self.path} has an A of its own for each matrix ({copy}): name them in {SETTING}, of "
                        f"{matrices}, instead of Megatron's fused layers"
                    )

    def read(self, name: str, block: tuple[slice, ...]) -> Tensor:
        return self._file.get_slice(name)[block]


def load_peft(chunks: Sequence[torch.nn.Module], folder: Path, architecture: GPTArchitecture, peft: PeftConfig) -> None:
    """Fills the adapters of ``chunks`` in place, whatever the layout; each rank reads its own slices. A reward head
    beside them is filled too, where the folder has one. Issues no collective.

    Raises:
        CheckpointError, ConfigError: on every rank alike, where the folder's tensors are not those of the adapters.
    """
    targets = targets_in(architecture, peft.lora_tuning.target_modules)
    made = adapter_tensors(megatron_tensors(architecture), targets, peft.lora_tuning.adapter_dim)
    weights = _PeftWeights(folder / PEFT_WEIGHTS, made.copies)
    weights.check(hf_shapes(made.tensors), tied=False)
    fill_shards(adapter_shards(chunks), made.tensors, weights)
    load_reward_head(chunks, folder)
