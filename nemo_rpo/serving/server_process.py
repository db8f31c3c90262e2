"""A server that this process starts, and that does not outlive it."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
import socket
import subprocess
from pathlib import Path

from nemo_rpo.errors import ConfigError, ServerError
from nemo_rpo.process_tree import die_with_parent

_LAST_WORDS = 2000  # bytes of the log that are looked at for the reason of an end
_STOP_S = 15.0


class ServerProcess:
    """One server process at a time, with a session of its own. Start it from the main thread: on Linux it ends with the
    thread that started it.

    Args:
        command: with ``{model}`` and ``{port}``.
        log: file that its output is appended to.
    """

    def __init__(self, command: str, log: Path) -> None:
        self.command, self.log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, model: str) -> str:
        """Ends the one that runs and starts another on these weights; returns its url. It may not answer yet.

        Raises:
            ConfigError: there is no such program.
        """
        self.stop()
        port = _free_port()
        named = {"{model}": model, "{port}": str(port)}
        words = [functools.reduce(lambda text, name: text.replace(name, named[name]), named, word)
                 for word in shlex.split(self.command)]  # fmt: skip
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=functools.partial(die_with_parent, os.getpid()),
                )
            except OSError as exc:
                raise ConfigError(f"the server's command cannot be run ({words[0]}: {exc.strerror})") from exc
        return f"http://127.0.0.1:{port}/v1"

    @property
    def runs(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def ended(self) -> ServerError:
        """The error for a server that ended by itself: its status and last words."""
        status = None if self._process is None else self._process.poll()
        return ServerError(f"the server ended with status {status} ({self.last_words()}); its log is {self.log}")

    def last_words(self) -> str:
        """The last line of its log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
        return "without a word"

    def stop(self) -> None:
        """Ends it with whatever it has started."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
                break
        self._process = None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
