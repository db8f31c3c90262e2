"""Hugging Face weights → the parameters of this rank's GPTModel chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.huggingface.mapping import MegatronTensor, hf_shapes, megatron_tensors
from nemo_rpo.megatron.huggingface.sharding import LocalShard, local_shards
from nemo_rpo.megatron.huggingface.weights import SafetensorsFolder


@torch.no_grad()
def load_hf_weights(chunks: Sequence[torch.nn.Module], folder: str | Path, architecture: GPTArchitecture) -> None:
    """Fills ``chunks`` (GPTModel, bare or wrapped) in place from the safetensors in ``folder``, cast to the parameters' dtype.

    Each rank reads its own slices only, straight from the memory-mapped files, and never holds more than one of them beside its parameters. Rows that pad the vocabulary become zero in the embeddings
    and in the output layer; no token id reaches them, and log-probs and generation mask their columns, so the value is only a definite one. With a mixed-precision optimizer already built, its
    fp32 copies still hold the old weights: call its ``reload_model_params()``. Issues no collective.

    Raises :class:`CheckpointError` (missing, damaged or misshapen tensor: on every rank alike) or :class:`ConfigError` (``chunks`` were built from another architecture).
    """
    tensors = {(tensor.key, tensor.layer): tensor for tensor in megatron_tensors(architecture)}
    with SafetensorsFolder(folder) as weights:
        weights.check(hf_shapes(tensors.values()), tied=architecture.share_embeddings_and_output_weights)
        for shard in local_shards(chunks):
            tensor = tensors.get((shard.key, shard.layer))
            if tensor is None:
                raise ConfigError(f"the model's {shard.key} (layer {shard.layer}) has no Hugging Face counterpart; build the model from the folder's architecture")
            tensor.check_shape(shard.global_shape)
            _fill(shard, tensor, weights)


def _fill(shard: LocalShard, tensor: MegatronTensor, weights: SafetensorsFolder) -> None:
    columns = tuple(slice(start, start + size) for start, size in zip(shard.offset[1:], shard.data.shape[1:], strict=True))
    filled = 0
    for name, theirs, ours in tensor.overlaps(shard.offset[0], shard.data.shape[0]):
        shard.data[ours].copy_(weights.read(name, (theirs, *columns)))
        filled = ours.stop
    shard.data[filled:].zero_()
