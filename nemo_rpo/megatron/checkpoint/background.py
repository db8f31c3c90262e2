"""Child processes that die with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its ``parent`` (a process id) dies for any reason, and to kill every
    process that this one forks from now on when this one dies. Does nothing outside Linux.
    """
    if sys.platform == "linux":
        _ask_kernel(parent)
        here = os.getpid()
        os.register_at_fork(after_in_child=lambda: _ask_kernel(here))


def _ask_kernel(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the request
        os.kill(os.getpid(), signal.SIGKILL)
