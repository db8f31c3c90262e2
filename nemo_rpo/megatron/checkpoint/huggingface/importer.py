"""Hugging Face weights → the parameters of this rank's GPTModel chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.checkpoint.huggingface.config import layers_left_out
from nemo_rpo.megatron.checkpoint.huggingface.mapping import MegatronTensor, hf_shapes, megatron_tensors
from nemo_rpo.megatron.checkpoint.huggingface.reward_head_file import load_reward_head
from nemo_rpo.megatron.checkpoint.huggingface.sharding import LocalShard, local_shards
from nemo_rpo.megatron.checkpoint.huggingface.tensors import Place
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
    with SafetensorsFolder(folder, layers_left_out(folder)) as weights:
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
    by_place = {tensor.place: tensor for tensor in tensors}
    shards = list(local_shards(chunks))
    _check_architecture(shards, by_place)
    weights.check(hf_shapes(by_place.values()), tied)
    fill_shards(shards, by_place.values(), weights)


@torch.no_grad()
def fill_shards(shards: Iterable[LocalShard], tensors: Iterable[MegatronTensor], weights: StoredWeights) -> None:
    """Fills ``shards`` of the ``tensors`` from ``weights``, which have been checked. Issues no collective."""
    by_place = {tensor.place: tensor for tensor in tensors}
    for shard in shards:
        _fill(shard, by_place[shard.place], weights)


def _check_architecture(shards: Sequence[LocalShard], tensors: Mapping[Place, MegatronTensor]) -> None:
    """The model has every tensor of the layers that are here (of their experts, those that are), and no others; raises
    :class:`ConfigError` otherwise.
    """
    here = {shard.place for shard in shards}
    layers = {layer for _, layer, _ in here if layer is not None}
    keys = {(key, layer) for key, layer, _ in here}
    missing = {place for place in tensors.keys() - here if place[1] in layers and place[:2] not in keys}
    unlike = (here - tensors.keys()) | missing
    if unlike:
        place = min(unlike, key=str)
        which = "model" if place in here else "folder's architecture"
        raise ConfigError(f"only the {which} has a {place[0]}; build the model from the folder's architecture")
    for shard in shards:
        tensors[shard.place].check_shape(shard.global_shape)


def _fill(shard: LocalShard, tensor: MegatronTensor, weights: StoredWeights) -> None:
    columns = tuple(slice(start, start + n) for start, n in zip(shard.offset[1:], shard.data.shape[1:], strict=True))
    filled = 0
    for name, theirs, ours in tensor.overlaps(shard.offset[0], shard.data.shape[0]):
        shard.data[ours].copy_(weights.read(name, (theirs, *columns)))
        filled = ours.stop
    shard.data[filled:].zero_()
