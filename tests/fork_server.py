"""The process behind :mod:`rank_pool`: it imports once what every rank imports, and forks the ranks of each job.

Started as ``python fork_server.py FD FOLDER…``: requests come over the socket ``FD``; the ``preload.py`` of a folder
(see :mod:`rank_pool`) is run before the first of them. It has one thread and computes nothing, so that a fork of it is
what a fresh process is after the same imports. Its ranks end with it, and it ends when the socket is closed.

A request is eight bytes of length, then a JSON object, and with the length come three files: standard output, standard
error, and a pipe for what is to be told of the job. Two lines of JSON go there: ``{"pids"}`` when the ranks run, and
``{"statuses", "first", "cpu"}`` when all have ended: their return codes as :mod:`subprocess` gives them, the number
of the rank that failed first, and the CPU seconds of the ranks and of this process since it last told.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib.util
import json
import multiprocessing.context
import multiprocessing.managers
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE_S = 10.0  # for the peers of a rank that has failed, between SIGTERM and SIGKILL
_HERE = str(Path(__file__).resolve().parent)


@dataclass
class Job:
    """Ranks that belong together.

    Attributes:
        report: the pipe to whoever asked. ranks: of every process id its rank; ``store``: a process beside them.
        statuses: of the ranks that have ended. first: the rank that failed first. kill_at: when the others are killed.
        stderr: the job's. stacks: of every rank the file for its stacks, should a signal end it: ranks end together,
            and what they wrote to one file at once nobody could read.
    """

    report: int
    ranks: dict[int, int]
    store: int | None
    stderr: int
    statuses: dict[int, int] = field(default_factory=dict)
    first: int | None = None
    kill_at: float | None = None
    cpu: float = 0.0
    stacks: dict[int, int] = field(default_factory=dict)

    def running(self) -> list[int]:
        return [pid for pid, rank in self.ranks.items() if rank not in self.statuses]


class Server:
    def __init__(self, control: socket.socket) -> None:
        self.control, self.jobs = control, []
        self.path = [entry for entry in sys.path if entry != _HERE and entry not in _python_path(os.environ)]
        self.added: dict[str, str] = {}  # to the environment, by what was imported
        self.told = 0.0  # CPU seconds of this process
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self.wake, False)

    def preload(self, folders: list[str]) -> None:
        before = dict(os.environ)
        for folder in folders:
            runpy.run_path(str(Path(folder) / "preload.py"))
        self.added = {name: value for name, value in os.environ.items() if before.get(name) != value}
        gc.collect()
        gc.freeze()  # else a rank's first collection would copy every page of what is shared

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(self.woken, selectors.EVENT_READ)
            self.selector = selector
            while True:
                for key, _ in selector.select(0.1 if any(job.kill_at for job in self.jobs) else None):
                    if key.fileobj is self.control:
                        if not self._take_request():
                            return self._end_all()
                    else:
                        os.read(self.woken, 4096)
                self._reap()

    # --- a job's beginning

    def _take_request(self) -> bool:
        head, files, _, _ = socket.recv_fds(self.control, 8, 3)
        if not head:
            return False
        body = b""
        while len(body) < int.from_bytes(head, "big"):
            body += self.control.recv(1 << 20)
        stdout, stderr, report = files
        self._start(json.loads(body), stdout, stderr, report)
        os.close(stdout)
        os.close(stderr)
        return True

    def _start(self, request: dict[str, Any], stdout: int, stderr: int, report: int) -> None:
        job = Job(report, {}, None, os.dup(stderr))
        self.jobs.append(job)
        places: list[dict[str, str]] = [{}]
        if request["ranks"] is not None:
            port, job.store = self._start_store()
            places = [_place(rank, request["ranks"], port) for rank in range(request["ranks"])]
        for rank, place in enumerate(places):
            stacks = os.memfd_create("stacks")
            pid = os.fork()
            if pid == 0:
                _become(self, request, place, stdout, stderr, stacks)
            job.ranks[pid], job.stacks[pid] = rank, stacks
        _tell(report, {"pids": list(job.ranks)})

    def _start_store(self) -> tuple[int, int]:
        """A process with the store where ranks meet, as torchrun's agent keeps it; its port and id."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.leave()
            os.close(reader)
            from torch.distributed import TCPStore

            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            os.write(writer, str(store.port).encode())
            os.close(writer)
            signal.pause()
        os.close(writer)
        with os.fdopen(reader) as said:
            return int(said.read()), pid

    def leave(self) -> None:
        """In a fork: forgets the server's files and signals."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        self.control.close()
        files = [fd for job in self.jobs for fd in (job.report, job.stderr, *job.stacks.values())]
        for fd in (self.woken, self.wake, *files):
            os.close(fd)
        _die_with_parent()

    # --- a job's end

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            for job in self.jobs:
                if pid in job.ranks:
                    self._ended(job, pid, os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime)
        for job in self.jobs:
            if job.kill_at and time.monotonic() > job.kill_at:
                for pid in job.running():
                    _signal(pid, signal.SIGKILL)
        for job in [job for job in self.jobs if not job.running()]:
            self._finish(job)

    def _ended(self, job: Job, pid: int, status: int, cpu: float) -> None:
        job.statuses[job.ranks[pid]] = status
        job.cpu += cpu
        _signal(-pid, signal.SIGKILL)  # what a rank leaves behind
        stacks = job.stacks.pop(pid)
        os.write(job.stderr, os.pread(stacks, 1 << 20, 0))
        os.close(stacks)
        if status and job.first is None:
            job.first, job.kill_at = job.ranks[pid], time.monotonic() + GRACE_S
            for other in job.running():
                _signal(other, signal.SIGTERM)

    def _finish(self, job: Job) -> None:
        self.jobs.remove(job)
        if job.store is not None:
            _signal(job.store, signal.SIGKILL)
        used, self.told = time.process_time() - self.told, time.process_time()
        statuses = [job.statuses[rank] for rank in range(len(job.ranks))]
        _tell(job.report, {"statuses": statuses, "first": job.first, "cpu": job.cpu + used})
        os.close(job.report)
        os.close(job.stderr)

    def _end_all(self) -> None:
        for job in self.jobs:
            for pid in (*job.running(), *([job.store] if job.store else [])):
                _signal(pid, signal.SIGKILL)
                _signal(-pid, signal.SIGKILL)


def _tell(report: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked may be gone
        os.write(report, json.dumps(what).encode() + b"\n")


def _signal(process: int, number: int) -> None:
    """To a process, or to the group ``-process``; no error where it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _python_path(environment: os._Environ[str] | dict[str, str]) -> list[str]:
    return [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank of one machine."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank, "GROUP_RANK": 0}
    place |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "ROLE_WORLD_SIZE": ranks, "GROUP_WORLD_SIZE": 1}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ROLE_NAME": "default"}
    place |= {"TORCHELASTIC_RUN_ID": "pool", "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}
    return {name: str(value) for name, value in place.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}


# --- what a rank is


def _become(
    server: Server, request: dict[str, Any], place: dict[str, str], stdout: int, stderr: int, stacks: int
) -> None:
    """Turns a fork of the server into the process that was asked for, runs it, and ends; never returns."""
    status = 1
    try:
        os.setsid()
        server.leave()
        for fd, file in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
            os.dup2(file, fd)
        os.close(stdout)
        os.close(stderr)
        faulthandler.enable(stacks)  # at SIGABRT, which ends what hangs, each thread's stack
        os.environ.clear()
        os.environ.update(server.added | request["env"] | place)
        os.chdir(request["cwd"])
        if "numpy" in sys.modules:  # as a fresh process: torch has its fixed seed, `random` reseeds itself at a fork
            sys.modules["numpy"].random.seed()
        random.seed()
        multiprocessing.context.SpawnContext.Manager = _forked_manager
        status = _run(server.path, request)
    except BaseException:
        traceback.print_exc()
    finally:
        _exit(status)


def _forked_manager(self: multiprocessing.context.BaseContext) -> multiprocessing.managers.SyncManager:
    """For Megatron's checkpoint writer, whose manager would import torch first."""
    return multiprocessing.get_context("fork").Manager()


def _run(base: list[str], request: dict[str, Any]) -> int:
    """Runs a file, a module or lines of code as ``python``, ``python -m`` or ``python -c`` does; its exit status."""
    kind, what = request["kind"], request["what"]
    main = types.ModuleType("__main__")
    first = str(Path(what).parent) if kind == "file" else os.getcwd() if kind == "module" else ""
    sys.path[:] = [first, *_python_path(request["env"]), *base]
    sys.modules["__main__"] = main
    try:
        for folder in _python_path(request["env"]):
            if (Path(folder) / "sitecustomize.py").exists():  # which Python imports at a start
                runpy.run_path(str(Path(folder) / "sitecustomize.py"))
        if kind == "module":
            main.__spec__ = spec = importlib.util.find_spec(what)
            main.__file__, code = spec.origin, spec.loader.get_code(what)
            main.__package__ = spec.parent
        elif kind == "file":
            main.__file__ = what
            code = compile(Path(what).read_bytes(), what, "exec")
        else:
            code = compile(what, "<string>", "exec")
        sys.argv = [getattr(main, "__file__", "-c"), *request["arguments"]]
        exec(code, vars(main))
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return (exc.code or 0) & 0xFF
        print(exc.code, file=sys.stderr)
        return 1
    except BaseException as exc:
        ours = exc.__traceback__
        traceback.print_exception(type(exc), exc, ours.tb_next or ours)
        return 1
    return 0


def _exit(status: int) -> None:
    """Ends as an interpreter does, short of taking its modules apart, which takes longer than many a job."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        status = status or 1
    finally:
        os._exit(status)


if __name__ == "__main__":
    server = Server(socket.socket(fileno=int(sys.argv[1])))
    server.preload(sys.argv[2:])
    server.serve()
