"""Stopping early without losing a step: a person's Ctrl-C, a scheduler's signal, or a time limit nearly over."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from types import TracebackType

import torch
import torch.distributed as dist

# What a batch system sends some minutes before it takes the nodes away.
STOP_SIGNAL = signal.SIGUSR1
# What a person sends, or whoever manages the process. The second one ends the process at once.
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

# sysexits.h: try again later. The run is whole up to its last checkpoint and not at its end.
STOPPED_EARLY = 75

# The terminal and a launcher may both pass on one Ctrl-C: what follows within so many seconds is the same one.
_THE_SAME_S = 1.0
_LOOK_FOR_PEERS_S = 0.5
_NO_SIGNAL = b"\0"


class StopRequest:
    """Whether the run is to save and stop after the step it is in; listens to signals until it is closed.

    * :data:`STOP_SIGNAL` is noted whenever it comes.
    * The first SIGINT or SIGTERM is noted while the run is :attr:`stepping`; before that there is nothing to save, and
      after it everything is, so the process ends at once.
    * The second one ends the process at once, with status 128 + its number.
    * SIGTERM is also what torchrun sends to the ranks that are left when one has failed. They wait in a collective that
      nobody will join, so a rank that misses one of those beside it ends at once too.

    A thread of its own hears the signals: Python's handlers run on the main thread, which may be inside a collective.

    ``limit`` seconds from ``started`` (``time.monotonic``) are over when less than a twentieth of them is left.

    Attributes:
        stepping: whether optimizer steps are under way.
    """

    def __init__(self, started: float, limit: int | None) -> None:
        self.stepping = False
        self._deadline = None if limit is None else started + 0.95 * limit
        self._asked: signal.Signals | None = None
        self._asked_at = -_THE_SAME_S
        self._taken = False  # all ranks know of it: none has failed
        self._first_rank = os.environ.get("RANK", "0") == "0"
        self._hears, self._says = socket.socketpair()
        self._says.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._says.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _heard) for number in (STOP_SIGNAL, *_INTERRUPTS)}
        self._ears = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._ears.start()

    def reason(self, device: torch.device) -> str | None:
        """Why to stop now, the same on every rank, or None.

        Collective over the world: one all-reduce of two numbers. The clock is rank 0's, and a signal that reached any
        rank counts.
        """
        late = self._deadline is not None and dist.get_rank() == 0 and time.monotonic() > self._deadline
        asked = torch.tensor([float(self._asked or 0), float(late)], device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        signalled, late = asked.tolist()
        if signalled:
            self._taken = True
            return f"{signal.Signals(int(signalled)).name} asks for it"
        return "exp_manager.max_time_per_run is nearly over" if late else None

    def close(self) -> None:
        """Gives the signals back to those who had them."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        signal.set_wakeup_fd(self._previous_fd)
        self._says.send(_NO_SIGNAL)  # closing it is no end: forked helpers hold it too
        self._ears.join()
        self._says.close()
        self._hears.close()

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _listen(self) -> None:
        while True:
            watching = self._asked == signal.SIGTERM and not self._taken
            if not select.select([self._hears], [], [], _LOOK_FOR_PEERS_S if watching else None)[0]:
                if _misses_a_peer():
                    os._exit(128 + signal.SIGTERM)
                continue
            numbers = self._hears.recv(64)
            if _NO_SIGNAL in numbers:
                return
            for number in numbers:
                if number in self._previous:
                    self._received(signal.Signals(number))

    def _received(self, number: signal.Signals) -> None:
        if number == STOP_SIGNAL:
            self._asked = self._asked or number
            return
        if number == signal.SIGTERM and _misses_a_peer():
            os._exit(128 + number)
        if not self.stepping:
            self._end(number, "there is nothing to save that has not been saved")
        if self._asked not in _INTERRUPTS:
            self._asked, self._asked_at = number, time.monotonic()
            self._say(f"{number.name}: the run finishes its step, saves and stops (again: it ends at once)")
        elif time.monotonic() - self._asked_at > _THE_SAME_S:
            self._end(number, "the run goes on from its last checkpoint when it is started again")

    def _end(self, number: signal.Signals, what_now: str) -> None:
        self._say(f"interrupted: {what_now}")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + number)

    def _say(self, text: str) -> None:
        if self._first_rank:
            print(f"\n{text}", file=sys.stderr, flush=True)


def _heard(number: int, frame: object) -> None:
    """Nothing: with a handler, the number goes to the thread that listens."""


def _misses_a_peer() -> bool:
    """Whether torchrun started more ranks on this machine than there are now."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    import psutil

    ranks = set()
    try:
        for process in psutil.Process(os.getppid()).children():
            if process.status() != psutil.STATUS_ZOMBIE:
                ranks.add(process.environ().get("LOCAL_RANK"))
    except psutil.Error:
        return True  # one has ended just now
    return len(ranks - {None}) < int(os.environ["LOCAL_WORLD_SIZE"])
