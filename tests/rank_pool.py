"""Ranks without their start-up: forks of a process that has imported what they import (:mod:`fork_server`).

Importing the engine takes some four CPU seconds a rank, and torchrun as many again: more than most runs of a test. A
fork takes some hundredths, and is as apart from other runs as a fresh process: an environment, arguments, folder,
signals and ``__main__`` of its own. What a fork does not show is the start itself: launchers, what imports say, the
order of imports, hash seeds that differ from rank to rank. Tests of those start real processes, as all do where
``NEMO_RPO_TEST_POOL=off`` is set.

What the server imports is in ``preload.py`` of the script's folder, or of the nearest folder above it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import cpu_seconds
import psutil
from paths import TESTS, environment

ENABLED = sys.platform == "linux" and os.environ.get("NEMO_RPO_TEST_POOL") != "off"
_STARTED_IN_S = 300.0  # a server, on a busy machine


class ForkedRanks:
    """The ranks of one job, in the manner of :class:`subprocess.Popen`.

    Attributes:
        pids: of the ranks in their order. returncode: 0, or that of the rank that failed first; None before the end.
        statuses: of all ranks.
    """

    def __init__(self, report: IO[bytes], server: _Server, stdout: IO[str], stderr: IO[str]) -> None:
        self._report, self._server, self._stdout, self._stderr = report, server, stdout, stderr
        self.returncode: int | None = None
        self.statuses: list[int] = []
        self.pids: list[int] = self._told(_STARTED_IN_S)["pids"]

    @property
    def pid(self) -> int:
        return self.pids[0]

    def _told(self, timeout: float | None) -> dict:
        if not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("ranks", timeout or 0.0)
        line = self._report.readline()
        if not line:
            raise RuntimeError(f"the fork server has ended\n{self._server.said()}")
        return json.loads(line)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            told = self._told(timeout)
            self.statuses, first = told["statuses"], told["first"]
            self.returncode = 0 if first is None else self.statuses[first]
            cpu_seconds.of_forks += told["cpu"]
            self._report.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; all that the ranks wrote to standard output and error."""
        self.wait(timeout)
        return _content(self._stdout), _content(self._stderr)

    def send_signal(self, number: int) -> None:
        """To every rank and to the processes that it has started."""
        for process in descendants(self):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def descendants(process: subprocess.Popen[str] | ForkedRanks) -> list[psutil.Process]:
    """Its processes and all that these have started, while it runs."""
    found: list[psutil.Process] = []
    if process.poll() is not None:  # others may have its numbers by now
        return found
    for pid in getattr(process, "pids", [process.pid]):
        with contextlib.suppress(psutil.NoSuchProcess):
            one = psutil.Process(pid)
            found += [*one.children(recursive=True), one]
    return found


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class _Server:
    """A fork server of an interpreter, for the ``preload.py`` of one folder."""

    def __init__(self, python: str, folder: Path) -> None:
        self._socket, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        with theirs:
            self._process = subprocess.Popen(
                [python, str(TESTS / "fork_server.py"), str(theirs.fileno()), str(folder)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for pytest, which then ends it
            )

    def said(self) -> str:
        return _content(self._log)

    def start(self, request: dict, stdout: IO[str] | None, stderr: IO[str] | None) -> ForkedRanks:
        stdout = stdout or tempfile.TemporaryFile("w+", errors="replace")
        stderr = stderr or tempfile.TemporaryFile("w+", errors="replace")
        reader, writer = os.pipe()
        body = json.dumps(request).encode()
        try:
            socket.send_fds(self._socket, [len(body).to_bytes(8, "big")], [stdout.fileno(), stderr.fileno(), writer])
            self._socket.sendall(body)
        except BrokenPipeError as exc:
            raise RuntimeError(f"the fork server has ended\n{self.said()}") from exc
        finally:
            os.close(writer)
        return ForkedRanks(os.fdopen(reader, "rb", buffering=0), self, stdout, stderr)

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_servers: dict[tuple[str, Path], _Server] = {}


def start(
    what: str | Path,
    arguments: Sequence[str],
    ranks: int | None,
    *,
    env: Mapping[str, str] | None = None,
    module: bool = False,
    preload: Path = TESTS,
    python: str | Path = sys.executable,
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
) -> ForkedRanks:
    """Runs a file, a module's name or lines of code on ``ranks`` ranks, or in one process that is no rank.

    A failed rank ends the others, as under torchrun. Both outputs go to the open files given, else they are kept for
    ``communicate``. ``preload``: the folder whose ``preload.py`` the server has run. Of ``env`` the modules that are
    imported already have seen nothing.
    """
    key = (str(python), preload)
    if key not in _servers:
        _servers[key] = _Server(*key)
    request = {
        "kind": "module" if module else "file" if isinstance(what, Path) else "lines",
        "what": str(what),
        "arguments": list(map(str, arguments)),
        "ranks": ranks,
        "env": environment(env),
        "cwd": os.getcwd(),
    }
    return _servers[key].start(request, stdout, stderr)


def preload_of(script: Path) -> Path:
    """The folder whose ``preload.py`` is a script's."""
    return next((folder for folder in script.parents if (folder / "preload.py").exists()), TESTS)


@atexit.register
def close() -> None:
    """Ends the servers. (They end by themselves when this process does.)"""
    while _servers:
        _servers.popitem()[1].close()
