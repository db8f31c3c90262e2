"""Stopping early without losing a step: a signal from the scheduler, or a time limit that is nearly over."""

from __future__ import annotations

import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

# What a batch system sends some minutes before it takes the nodes away. SIGTERM cannot stand for it: torchrun ends the
# ranks with SIGTERM when one has failed, and those wait for it in a collective.
STOP_SIGNAL = signal.SIGUSR1

# sysexits.h: try again later. The run is whole up to its last checkpoint and not at its end.
STOPPED_EARLY = 75


class StopRequest:
    """Whether the run is to save and stop after the step it is in; listens for :data:`STOP_SIGNAL` from now on.

    ``limit`` seconds from ``started`` (``time.monotonic``) are over when less than a twentieth of them is left.
    """

    def __init__(self, started: float, limit: int | None) -> None:
        self._deadline = None if limit is None else started + 0.95 * limit
        self._signalled = False
        signal.signal(STOP_SIGNAL, self._note)

    def reason(self, device: torch.device) -> str | None:
        """Why to stop now, the same on every rank, or None.

        Collective over the world: one all-reduce of two numbers. The clock is rank 0's, and a signal that reached any
        rank counts.
        """
        late = self._deadline is not None and dist.get_rank() == 0 and time.monotonic() > self._deadline
        asked = torch.tensor([float(self._signalled), float(late)], device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        signalled, late = asked.tolist()
        if signalled:
            return f"{STOP_SIGNAL.name} asks for it"
        return "exp_manager.max_time_per_run is nearly over" if late else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
