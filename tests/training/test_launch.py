"""How ranks end: one line for a mistake, every rank gone, and no waiting for a peer that will not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from paths import ROOT
from torchrun import run_process, run_ranks

from nemo_rpo.errors import ConfigError
from nemo_rpo.launch import run_on_ranks

pytestmark = pytest.mark.distributed

HEAD = """
import os, sys, time
import torch
import torch.distributed as dist
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.launch import run_on_ranks
rank = int(os.environ["RANK"])

def meet():
    dist.init_process_group("gloo")
    dist.barrier()
"""


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "body.py"
    function = "def main():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    path.write_text(f"{HEAD}\n{function}\nsys.exit(run_on_ranks(main))\n")
    return path


def spoken(stderr: str) -> list[str]:
    """What the ranks said; torchrun's own account of the failure follows it."""
    lines = []
    for line in stderr.splitlines():
        if "torch/distributed/" in line or line.startswith(("W1", "E1", "W0", "E0", "[W", "[E", "[rank")):
            continue
        if line.startswith("Traceback") and lines:
            break
        lines.append(line)
    return [line for line in lines if line.strip() and not line.startswith("*")]


def test_all_ranks_fail_alike_and_one_speaks(tmp_path: Path) -> None:
    body = """
    meet()
    raise ConfigError("model.x is wrong:\\n  change it")
    """
    result = run_ranks(script(tmp_path, body), 3, check=False, timeout=60, forked=False)
    assert result.returncode != 0
    assert spoken(result.stderr)[0] == "error: model.x is wrong: change it"
    assert result.stderr.count("model.x is wrong") == 1


def test_one_rank_fails_and_all_end(tmp_path: Path) -> None:
    body = """
    meet()
    if rank == 2:
        raise DataError("row 7 is empty")
    dist.all_reduce(torch.ones(1))
    """
    started = time.monotonic()
    result = run_ranks(script(tmp_path, body), 3, check=False, timeout=60, forked=False)
    assert result.returncode != 0 and time.monotonic() - started < 30
    assert spoken(result.stderr)[0] == "error on rank 2: row 7 is empty"
    assert "gloo" not in "\n".join(spoken(result.stderr))  # the echo on the other ranks stays unsaid
    assert "exitcode  : 2 " in result.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    body = """
    meet()
    if rank == 1:
        raise KeyError("surprise")
    dist.all_reduce(torch.ones(1))
    """
    result = run_ranks(script(tmp_path, body), 2, check=False, timeout=60, forked=False)
    assert result.returncode != 0
    assert "unexpected error on rank 1: Traceback (most recent call last):" in result.stderr
    assert result.stderr.count("KeyError: 'surprise'") == 1 and "exitcode  : 1 " in result.stderr


def test_success_closes_the_process_group(tmp_path: Path) -> None:
    result = run_ranks(script(tmp_path, "meet()\nprint('done')"), 2, timeout=60, forked=False)
    assert result.stdout.count("done") == 2
    assert "destroy_process_group" not in result.stderr


def test_a_runs_folder_is_free_when_the_run_has_left_it_whatever_it_has_forked(tmp_path: Path) -> None:
    body = f"""
    import signal
    from pathlib import Path
    from nemo_rpo.training.process.run_lock import claimed, holder_of
    meet()
    folder = Path({str(tmp_path)!r}) / "run"
    with claimed(folder):
        helper = os.fork()
        if not helper:
            time.sleep(60)
            os._exit(0)
        holder = holder_of(folder)
    print(f"process {{os.getpid()}}" in holder, holder_of(folder))
    os.kill(helper, signal.SIGKILL)
    """
    assert run_ranks(script(tmp_path, body), 1, timeout=60, forked=False).stdout == "True None\n"


def test_leaving_does_all_that_an_interpreter_does_but_take_itself_apart(tmp_path: Path) -> None:
    code = """
    import atexit, threading, time
    from nemo_rpo.launch import call_and_leave
    class Held:
        def __del__(self): print("taken apart")
    held = Held()
    def main():
        atexit.register(lambda: print("exit function"))
        threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
        return ENDING
    call_and_leave(main)
    """
    for ending, status, said in (("75", 75, ""), ("0", 0, ""), ("1 / 0", 1, "Zero"), ("exit(3)", 3, "")):
        ended = run_process(["-c", textwrap.dedent(code).replace("ENDING", ending)], forked=False)
        assert ended.returncode == status and said in ended.stderr
        assert ended.stdout == "thread\nexit function\n" + "taken apart\n" * (ending in ("1 / 0", "exit(3)"))


@pytest.fixture
def launcher(tmp_path: Path) -> list[str]:
    """A process that starts the module ``body`` on two ranks, as ``nemo-rpo train`` does."""
    code = "import sys; from nemo_rpo.launch import start_ranks; sys.exit(start_ranks(2, 'body', []))"
    return [sys.executable, "-c", code]


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}


def test_the_launcher_adds_no_word(tmp_path: Path, launcher: list[str]) -> None:
    script(tmp_path, 'meet()\nif rank == 0:\n    raise ConfigError("no")\ndist.barrier()')
    result = subprocess.run(launcher, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (2, "error: no\n")


def test_the_launcher_names_a_killed_rank(tmp_path: Path, launcher: list[str]) -> None:
    script(tmp_path, "meet()\nif rank == 1:\n    os.kill(os.getpid(), 9)\ndist.barrier()")
    result = subprocess.run(launcher, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (128 + 9, "error: rank 1 was ended by SIGKILL\n")


def test_interrupting_ends_all_ranks_at_once(tmp_path: Path, launcher: list[str]) -> None:
    ready = tmp_path / "ready"
    script(tmp_path, f"meet()\nif rank == 0:\n    open({str(ready)!r}, 'w')\n    time.sleep(100)\ndist.barrier()")
    process = subprocess.Popen(launcher, env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    while not ready.exists() and process.poll() is None:
        time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 20  # torchrun kills what has not ended after 30 s
    assert (process.returncode, stderr) == (128 + signal.SIGINT, "interrupted\n")


def test_a_single_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def fail(exc: BaseException):
        def main() -> None:
            raise exc

        return main

    assert run_on_ranks(lambda: None) == 0
    assert run_on_ranks(fail(ConfigError("a\nb"))) == 2
    assert run_on_ranks(fail(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        run_on_ranks(fail(ZeroDivisionError()))
    assert capsys.readouterr().err == "error: a b\ninterrupted\n"


WITH_HELPERS = """
import multiprocessing, os, subprocess, sys, time
from pathlib import Path
from nemo_rpo.launch import run_on_ranks

def sleep():
    time.sleep(100)

def main():
    manager = multiprocessing.get_context("spawn").Manager()  # as Megatron's writers have one, with its tracker
    writer = multiprocessing.get_context("fork").Process(target=sleep)
    writer.start()
    Path(os.environ["READY"], os.environ.get("RANK", "0")).touch()
    time.sleep(100)

if __name__ == "__main__":
    sys.exit(run_on_ranks(main))
"""


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may have asked for its status yet
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's and /proc's part in it is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("ranks", [1, 2], ids=["main process", "launcher"])
def test_no_process_outlives_the_first(tmp_path: Path, launcher: list[str], ranks: int, how: signal.Signals) -> None:
    """The launcher alone is killed, or the one process of a run: ranks, writers and trackers end with it."""
    (tmp_path / "body.py").write_text(WITH_HELPERS)
    command = launcher if ranks == 2 else [sys.executable, str(tmp_path / "body.py")]
    ready = tmp_path / "ready"
    ready.mkdir()
    process = subprocess.Popen(
        command, env=environment(tmp_path) | {"READY": str(ready)}, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(ready.iterdir())) < ranks and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= ranks * 3 + (ranks if ranks > 1 else 0)  # manager, tracker, writer; and the rank itself
    process.send_signal(how)
    deadline = time.monotonic() + 30
    while (alive := list(filter(lives, family))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for one in alive:
        one.kill()
    process.wait(timeout=60)
    assert not alive
