"""One job at a time in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from nemo_rpo.errors import ConfigError

# A restarted job may begin while the one before it is still ending.
_PATIENCE_S = 5.0


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and keeps every other job out of it inside the block. Collective over the world.

    Global rank 0 locks ``.lock`` in the folder. The lock is the kernel's, so it is free the moment its holder dies. On
    a file system without locks nobody is kept out.

    Raises:
        ConfigError: on every rank; another job is at work there, or the folder cannot be written.
    """
    from nemo_rpo.training.process.rank0 import on_first_rank  # imports torch, which a report does without

    with contextlib.ExitStack() as held:

        def lock() -> None:
            held.callback(_free, _locked(folder))

        on_first_rank(lock)
        yield


def holder_of(folder: Path) -> str | None:
    """Which job is at work in ``folder``; None if there is none, or its file system has no locks."""
    try:
        file = (folder / ".lock").open(encoding="utf-8")
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "by another job"
        except OSError:
            return None
    return None


def _locked(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"the run's folder {folder} cannot be written ({exc.strerror}): "
            "give exp_manager.explicit_log_dir another one"
        ) from exc
    deadline = time.monotonic() + _PATIENCE_S
    while not _try(file):
        if time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise ConfigError(
                f"another job ({holder}) is at work in {folder}: wait for its end, or give "
                "exp_manager.explicit_log_dir another folder"
            )
        time.sleep(0.1)
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _free(file: TextIO) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # closing it does not free it while a process forked from this one has it too
    file.close()


def _try(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True
