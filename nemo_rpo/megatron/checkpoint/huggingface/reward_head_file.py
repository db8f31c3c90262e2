"""A reward head beside a Hugging Face model: ``reward_head.safetensors``, ``<output>.weight`` by output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.network.reward_head import head_of

REWARD_HEAD_FILE = "reward_head.safetensors"


def saved_outputs(folder: str | Path) -> dict[str, int]:
    """Name and width of each output of the head in ``folder``; none without a file. :class:`CheckpointError` if it is
    damaged.
    """
    path = Path(folder) / REWARD_HEAD_FILE
    if not path.is_file():
        return {}
    return {name.removesuffix(".weight"): len(weight) for name, weight in _read(path).items()}


@torch.no_grad()
def load_reward_head(chunks: Sequence[torch.nn.Module], folder: str | Path) -> None:
    """Fills the reward head of ``chunks`` from the file in ``folder``, where there are both; outputs that only one of
    them has, or has in another width, stay as they are. Issues no collective.

    Raises:
        CheckpointError: the file is damaged.
    """
    head, path = head_of(list(chunks)), Path(folder) / REWARD_HEAD_FILE
    if head is None or not path.is_file():
        return
    saved = _read(path)
    for name, weight in head.state_dict().items():
        if name in saved and saved[name].shape == weight.shape:
            weight.copy_(saved[name])


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path} cannot be read ({exc}): restore it, or remove it to start a new head") from exc
