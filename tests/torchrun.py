"""Starts real ranks for a test: ``torchrun`` on this machine, on a free port, one thread a rank."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from paths import ROOT, TESTS


def run_ranks(
    script: str | Path,
    nproc: int,
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    check: bool = True,
    python: str | Path = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Runs ``script`` (a file, or lines of code that it is handed as ``-c``) on ``nproc`` ranks.

    ``nemo_rpo`` and this folder are importable there whether installed or not. With ``check``, a failed rank fails the
    test; the end of what the ranks wrote goes to stderr, which pytest shows. A run that outlives ``timeout`` seconds is
    a hang: its ranks say where they stand, are killed, and :class:`AssertionError` tells it. ``python``: the
    interpreter, maybe of another environment.
    """
    launcher = [str(python), "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(nproc)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    if isinstance(script, Path):
        launcher += [str(script)]
    else:
        launcher += ["--no-python", str(python), "-c", textwrap.dedent(script)]
    command = launcher + [str(arg) for arg in args]
    environment = _environment(env or {})
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as exc:
        _, stderr = _end(process, signal.SIGABRT)  # at which faulthandler prints each thread's stack
        print(stderr[-20000:], file=sys.stderr)
        raise AssertionError(f"{nproc} ranks hung for {timeout} s: their stacks are in the captured output") from exc
    except BaseException:
        _end(process, signal.SIGKILL)
        raise
    result = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check and result.returncode:
        said, _, _ = stderr.partition("failed (exitcode")  # the ranks' own words; the launcher's summary follows
        print(stdout[-3000:], said[-6000:], sep="\n", file=sys.stderr)
        raise AssertionError(f"{nproc} ranks ended with {result.returncode}: what they said is in the captured output")
    return result


def _end(launcher: subprocess.Popen[str], how: signal.Signals) -> tuple[str, str]:
    """Ends a launcher and its ranks, the ranks by the signal ``how``; what they wrote."""
    # torchrun gives each rank a session of its own, where a signal to the launcher's group does not reach it.
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    for rank in ranks:
        rank.send_signal(how)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    for rank in alive:
        rank.kill()
    launcher.kill()
    return launcher.communicate()


def run_apart(arguments: Sequence[str | Path], nproc: int, timeout: float = 240) -> list[tuple[int, str]]:
    """Runs ``python *arguments`` as ``nproc`` ranks that are started one by one; status and stderr of each.

    No torchrun is there to end the others when one fails: what a rank's status says, it has decided itself.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": nproc, "LOCAL_WORLD_SIZE": nproc, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=_environment({name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(nproc)
    ]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, stderr) for process, stderr in zip(processes, said, strict=True)]


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    ours = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return os.environ | ours | dict(env)
