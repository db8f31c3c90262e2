"""No process of a run outlives the one that started it, however that ended (Linux; elsewhere nothing here does
anything).

Megatron's checkpoint writers keep helper processes that ignore Ctrl-C, and outlive a killed rank for ever if nobody
ends them. So: forked children ask the kernel for SIGKILL at their parent's death, spawned ones watch the pipe that
multiprocessing gives them for it, and the launcher takes in whatever a dying rank leaves behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_forked_by_main_thread = True


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel end this process by SIGKILL when its ``parent`` (a process id; who it is now) ends, or now if that
    has ended already, and then whatever this process forks from now on.
    """
    parent = os.getppid() if parent is None else parent
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    let_children_die_with_us()


@functools.cache
def let_children_die_with_us() -> None:
    """From now on forked children end with this process, once and for all of them.

    The kernel means the *thread* that forked: children of other threads than the main one are left alone, since such a
    thread may end long before the process.
    """
    os.register_at_fork(before=_note_thread, after_in_child=_die_with_forking_parent)


def die_with_multiprocessing_parent() -> None:
    """In a child that multiprocessing has spawned: ends it, and what it forks, with its parent; elsewhere nothing."""
    parent = multiprocessing.parent_process()
    if parent is None or sys.platform != "linux":
        return
    let_children_die_with_us()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
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


def _note_thread() -> None:
    global _forked_by_main_thread
    _forked_by_main_thread = threading.current_thread() is threading.main_thread()


def _die_with_forking_parent() -> None:
    if _forked_by_main_thread:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
