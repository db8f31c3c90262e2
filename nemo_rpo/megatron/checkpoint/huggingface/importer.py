"""Hugging Face weights → the parameters of this rank's GPTModel chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.mapping import MegatronTensor, hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import load_reward_head
from nemo_rpo.megatron.checkpoint.huggingface.sharding import LocalShard, local_shards
from nemo_rpo.megatron.checkpoint.huggingface.weights import SafetensorsFolder


class StoredWeights(Protocol):
    """Tensors that are read a block at a time."""

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Raises :class:`CheckpointError` on every rank alike unless these are the tensors that are stored."""

    def read(self, name: str, block: tuple[slice, ...]) -> Tensor:
        """The ``block`` of tensor ``name``, on the CPU."""


def load_hf_weights(chunks: Sequence[torch.nn.Module], folder: str | Path, architecture: GPTArchitecture) -> None:
    """Fills ``chunks`` (GPTModel, bare or wrapped) in place from the safetensors in ``folder``, cast to the parameters'
    dtype.

    Each rank reads only its own slices, straight from the memory-mapped files, one at a time. Rows that pad the
    vocabulary become zero in the embeddings and the output layer: no token id reaches them, and log-probs and
    generation mask their columns, so any definite value would do. An optimizer that was built before keeps fp32 copies
    of the old weights: call its ``reload_model_params()``. A reward head is filled from the file beside the weights,
    where there is one (:func:`load_reward_head`). Issues no collective.

    Raises :class:`CheckpointError` for a missing, damaged or misshapen tensor, on every rank alike, and
    :class:`ConfigError` if ``chunks`` were built from another architecture.
    """
    with SafetensorsFolder(folder) as weights:
        tensors = megatron_tensors(architecture)
        fill_chunks(chunks, tensors, weights, tied=architecture.share_embeddings_and_output_weights)
    load_reward_head(chunks, folder)


@torch.no_grad()
def fill_chunks(
    chunks: Sequence[torch.nn.Module], tensors: Iterable[MegatronTensor], weights: StoredWeights, tied: bool
) -> None:
    """Fills ``chunks`` from ``weights``, whose rows make up the model's ``tensors``. Issues no collective.

    ``tied``: the output layer is the word embeddings. Raises as :func:`load_hf_weights` does.
    """
    by_key = {(tensor.key, tensor.layer): tensor for tensor in tensors}
    shards = list(local_shards(chunks))
    _check_architecture(shards, by_key)
    weights.check(hf_shapes(by_key.values()), tied)
    fill_shards(shards, by_key.values(), weights)


@torch.no_grad()
def fill_shards(shards: Iterable[LocalShard], tensors: Iterable[MegatronTensor], weights: StoredWeights) -> None:
    """Fills ``shards`` of the ``tensors`` from ``weights``, which have been checked. Issues no collective."""
    by_key = {(tensor.key, tensor.layer): tensor for tensor in tensors}
    for shard in shards:
        _fill(shard, by_key[(shard.key, shard.layer)], weights)


def _check_architecture(shards: Sequence[LocalShard], tensors: Mapping[tuple[str, int | None], MegatronTensor]) -> None:
    """The model has every tensor of the layers that are here, and no others; raises :class:`ConfigError` otherwise."""
    here = {(shard.key, shard.layer) for shard in shards}
    layers = {layer for _, layer in here if layer is not None}
    unlike = (here - tensors.keys()) | {(key, layer) for key, layer in tensors.keys() - here if layer in layers}
    if unlike:
        key, layer = min(unlike, key=str)
        which = "model" if (key, layer) in here else "folder's architecture"
        raise ConfigError(f"only the {which} has a {key}; build the model from the folder's architecture")
    for shard in shards:
        tensors[(shard.key, shard.layer)].check_shape(shard.global_shape)


def _fill(shard: LocalShard, tensor: MegatronTensor, weights: StoredWeights) -> None:
    columns = tuple(slice(start, start + n) for start, n in zip(shard.offset[1:], shard.data.shape[1:], strict=True))
    filled = 0
    for name, theirs, ours in tensor.overlaps(shard.offset[0], shard.data.shape[0]):
        shard.data[ours].copy_(weights.read(name, (theirs, *columns)))
        filled = ours.stop
    shard.data[filled:].zero_()
