"""Ranks for a test: forks of a prepared process (:mod:`rank_pool`), or real starts by ``torchrun`` on a free port."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil
import rank_pool
from paths import ROOT as ROOT
from paths import TESTS, environment
from rank_pool import ForkedRanks, descendants


def run_ranks(
    script: str | Path,
    nproc: int,
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    check: bool = True,
    python: str | Path = sys.executable,
    forked: bool | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs ``script`` (a file, or lines of code) on ``nproc`` ranks.

    With ``check``, a failed rank fails the test; the end of what the ranks wrote goes to stderr, which pytest shows. A
    run that outlives ``timeout`` seconds is a hang: its ranks say where they stand, are killed, and
    :class:`AssertionError` tells it. ``python``: the interpreter, maybe of another environment. Torchrun starts the
    ranks if ``forked`` is false; unless told, it is where they get variables ``env`` of their own, which imports may
    read.
    """
    script = script if isinstance(script, Path) else textwrap.dedent(script)
    forked = env is None if forked is None else forked
    if forked and rank_pool.ENABLED:
        own = isinstance(script, Path) and str(python) == sys.executable
        preload = rank_pool.preload_of(script) if own else TESTS
        process = rank_pool.start(script, args, nproc, env=env, python=python, preload=preload)
    else:
        process = _torchrun(script, nproc, args, env, python)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as exc:
        _, stderr = _end(process, signal.SIGABRT)  # at which faulthandler prints each thread's stack
        print(stderr[-20000:], file=sys.stderr)
        raise AssertionError(f"{nproc} ranks hung for {timeout} s: their stacks are in the captured output") from exc
    except BaseException:
        _end(process, signal.SIGKILL)
        raise
    result = subprocess.CompletedProcess([str(script), *map(str, args)], process.returncode, stdout, stderr)
    if check and result.returncode:
        said, _, _ = stderr.partition("failed (exitcode")  # the ranks' own words; a launcher's summary follows
        print(stdout[-3000:], said[-6000:], sep="\n", file=sys.stderr)
        raise AssertionError(f"{nproc} ranks ended with {result.returncode}: what they said is in the captured output")
    return result


def _torchrun(
    script: str | Path, nproc: int, args: Sequence[str | Path], env: Mapping[str, str] | None, python: str | Path
) -> subprocess.Popen[str]:
    command = [str(python), "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(nproc)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += [str(script)] if isinstance(script, Path) else ["--no-python", str(python), "-c", script]
    command += map(str, args)
    return subprocess.Popen(command, env=environment(env), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _end(process: subprocess.Popen[str] | ForkedRanks, how: signal.Signals) -> tuple[str, str]:
    """Ends ranks by the signal ``how``, and their launcher; what they wrote."""
    # torchrun gives each rank a session of its own, where a signal to the launcher's group does not reach it.
    ranks = [one for one in descendants(process) if isinstance(process, ForkedRanks) or one.pid != process.pid]
    for rank in ranks:
        rank.send_signal(how)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    for rank in alive:
        rank.kill()
    process.kill()
    return process.communicate()


def start_process(
    arguments: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    *,
    ranks: int | None = None,
    output: IO[str] | None = None,
    forked: bool = True,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str] | ForkedRanks:
    """Starts ``python *arguments`` (``-m module …``, or a file and what it is given) in a session of its own.

    With ``ranks``, which are always forks, on as many ranks. Both outputs go to the file ``output``, else they are kept
    for ``communicate``. ``forked``: from the pool (the default), or a Python that starts from nothing, in which
    ``before`` may be called first.
    """
    if ranks is not None or (forked and rank_pool.ENABLED and before is None):
        module = arguments[0] == "-m"
        what = str(arguments[1]) if module else Path(arguments[0])
        rest = [str(argument) for argument in arguments[1 + module :]]
        return rank_pool.start(what, rest, ranks, env=env, module=module, stdout=output, stderr=output)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(env),
        text=True,
        stdout=output or subprocess.PIPE,
        stderr=subprocess.STDOUT if output else subprocess.PIPE,
        preexec_fn=before,
        start_new_session=True,
    )


def run_process(
    arguments: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    *,
    ranks: int | None = None,
    timeout: float = 240,
    forked: bool = True,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """:func:`start_process` to its end."""
    process = start_process(arguments, env, ranks=ranks, forked=forked, before=before)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess([*map(str, arguments)], process.returncode, stdout, stderr)


def run_apart(arguments: Sequence[str | Path], nproc: int, timeout: float = 240) -> list[tuple[int, str]]:
    """Runs ``python *arguments`` (``-m module …``, or a file and what it is given) as ``nproc`` ranks that are started
    one by one; status and stderr of each.

    Nobody ends the others when one fails: what a rank's status says, it has decided itself.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": nproc, "LOCAL_WORLD_SIZE": nproc, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{**place, "RANK": rank, "LOCAL_RANK": rank} for rank in range(nproc)]
    processes = [start_process(arguments, {name: str(value) for name, value in one.items()}) for one in places]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, stderr) for process, stderr in zip(processes, said, strict=True)]
