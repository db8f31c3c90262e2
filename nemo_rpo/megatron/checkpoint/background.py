"""A process that works beside a rank, and does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """The kernel kills this process as soon as its ``parent`` (a process id) dies, however it does, and then those that
    this one forks from now on. On Linux; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        _ask_kernel(parent)
        here = os.getpid()
        os.register_at_fork(after_in_child=lambda: _ask_kernel(here))


def _ask_kernel(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)
