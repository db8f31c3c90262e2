"""No process of a run outlives the one that started it, however that ended (Linux; elsewhere nothing here does
anything).

Megatron's checkpoint writers keep helper processes that ignore Ctrl-C, and outlive a killed rank for ever if nobody
ends them. So: forked children ask the kernel for SIGKILL at their parent's death, spawned ones look for it, and the
launcher takes in whatever a dying rank leaves behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_forking_process: int | None = None  # about to fork, by its main thread


def die_with_parent(parent: int | None = None) -> None:
    """The kernel will kill this process when ``parent`` (a process id; None: the present parent) ends, or at once if it
    has ended already. What this process forks from now on will end with it in the same way.
    """
    _ask_kernel(os.getppid() if parent is None else parent)
    let_children_die_with_us()


@functools.cache
def let_children_die_with_us() -> None:
    """From now on forked children end with this process, once and for all of them.

    The kernel means the *thread* that forked: children of other threads than the main one are left alone, since such a
    thread may end long before the process.
    """
    os.register_at_fork(before=_note_forking, after_in_child=_die_with_forking)


def watch_parent() -> None:
    """In a process that multiprocessing has spawned: ends it, and what it forks, within a second of its parent's end.
    In any other process this does nothing.

    A thread looks for the parent: the kernel's signal would come at the end of the parent's *thread* that started this
    process, and which one that was is not known here.
    """
    if sys.platform != "linux" or "--multiprocessing-fork" not in sys.orig_argv:
        return
    let_children_die_with_us()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def adopt_orphans() -> None:
    """Makes this process the parent of whatever a dying descendant leaves behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kills all children of this process, and theirs."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    return _libc().prctl(option, value) == 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _note_forking() -> None:
    global _forking_process
    _forking_process = os.getpid() if threading.current_thread() is threading.main_thread() else None


def _die_with_forking() -> None:
    if _forking_process is not None:
        _ask_kernel(_forking_process)


def _ask_kernel(parent: int) -> None:
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


# A process that multiprocessing spawns from a run imports the run's main module, and with it this one: nothing else
# reaches a process that a library has spawned.
watch_parent()
