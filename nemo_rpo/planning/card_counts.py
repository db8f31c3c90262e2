"""A run on different numbers of GPUs: how full they are, how long a step takes, and why some numbers will not do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_parallel
from nemo_rpo.errors import ConfigError
from nemo_rpo.planning.hardware import Hardware
from nemo_rpo.planning.memory import Memory, peak_memory
from nemo_rpo.planning.step_time import step_seconds

NODE = 8  # GPUs of one machine
SPARE = 0.1  # of a GPU's memory, for what is not counted


@dataclass(frozen=True)
class Size:
    """One number of GPUs.

    Attributes:
        memory: bytes of the fullest; None where the layout does not hold.
        step_seconds: of a global batch; None where the run does not fit.
        why_not: what is in the way, empty where it fits.
    """

    gpus: int
    memory: Memory | None
    step_seconds: float | None
    why_not: str


def sizes(
    cfg: RunConfig, architecture: GPTArchitecture, hardware: Hardware, counts: Sequence[int], length: float
) -> list[Size]:
    """A :class:`Size` for each of ``counts`` GPUs, for texts (prompt and response) of ``length`` tokens on average."""
    return [_size(cfg, architecture, hardware, gpus, length) for gpus in counts]


def _size(cfg: RunConfig, architecture: GPTArchitecture, hardware: Hardware, gpus: int, length: float) -> Size:
    cfg = copy.deepcopy(cfg)
    cfg.trainer.devices = min(cfg.trainer.devices or NODE, gpus)
    cfg.trainer.num_nodes = gpus // cfg.trainer.devices
    try:
        validate_parallel(cfg, gpus)
    except ConfigError as exc:
        return Size(gpus, None, None, str(exc))
    memory = peak_memory(cfg, architecture, gpus)
    room = (1 - SPARE) * hardware.memory
    if memory.total > room:
        return Size(
            gpus, memory, None, f"{memory.total / 1e9:.0f} GB do not fit into {room / 1e9:.0f} of {hardware.name}"
        )
    return Size(gpus, memory, step_seconds(cfg, architecture, gpus, length, hardware), "")
