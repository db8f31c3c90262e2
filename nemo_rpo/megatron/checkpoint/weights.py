"""The weights of a model's chunks as Megatron's sharded tensors, without what is no tensor."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.network.lora.attachment import has_adapters, is_trained
from nemo_rpo.megatron.network.lora.sharded import sharded_adapters

State = dict[str, Any]


def _unwrapped(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The GPTModels inside data-parallel and precision wrappers."""
    unwrapped = []
    for chunk in chunks:
        while hasattr(chunk, "module"):
            chunk = chunk.module
        unwrapped.append(chunk)
    return unwrapped


def chunk_names(chunks: list[torch.nn.Module]) -> list[str]:
    """Name of each chunk in the state."""
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def model_state(chunks: list[torch.nn.Module]) -> State:
    """Sharded weights by chunk and name; of a model with adapters these, and its reward head, alone.

    Transformer Engine's extra state is left out: it is pickled, and only delayed FP8, which is refused here, needs it.
    """
    if not has_adapters(chunks):
        return base_state(chunks)
    state = {}
    for name, chunk in zip(chunk_names(chunks), _unwrapped(chunks), strict=True):
        trained = {key: entry for key, entry in chunk.sharded_state_dict().items() if is_trained(key)}
        state[name] = trained | sharded_adapters(chunk)
    return state


def base_state(chunks: list[torch.nn.Module]) -> State:
    """Sharded weights of everything but adapters, as :func:`model_state` gives them."""
    state = {}
    for name, chunk in zip(chunk_names(chunks), _unwrapped(chunks), strict=True):
        adapters = sharded_adapters(chunk)
        entries = chunk.sharded_state_dict().items()
        state[name] = {
            key: entry for key, entry in entries if not isinstance(entry, ShardedObject) and key not in adapters
        }
    return state


def load_model_state(chunks: list[torch.nn.Module], state: State) -> None:
    """Loads weights into the chunks, of those with adapters either the base or what is trained;
    :class:`CheckpointError` if names are missing or unknown.
    """
    adapted = has_adapters(chunks)
    for name, chunk in zip(chunk_names(chunks), _unwrapped(chunks), strict=True):
        found = chunk.load_state_dict(state[name], strict=False)
        missing = [key for key in found.missing_keys if not key.endswith("_extra_state")]
        if adapted:
            trained = any(map(is_trained, state[name]))
            missing = [key for key in missing if is_trained(key) and trained]
        if missing or found.unexpected_keys:
            raise CheckpointError(f"the checkpoint does not have the model's {(missing + found.unexpected_keys)[0]}")
