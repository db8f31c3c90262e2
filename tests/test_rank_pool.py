"""A fork of the pool is what a process is that has started: place, words, signals and end, and nothing of its peers."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import rank_pool
import torchrun
from torchrun import run_apart, run_process, run_ranks

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not rank_pool.ENABLED, reason="the pool is for Linux, and NEMO_RPO_TEST_POOL=off turns it off"),
]

# What a process is told, and may change.
TOLD = """
import json, os, signal, sys, threading
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "OF_THE_TEST")
line = json.dumps({
    "place": {name: os.environ.get(name) for name in names},
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "first on the path": os.path.realpath(sys.path[0]),
    "main": [__name__, sys.modules["__main__"].__dict__ is globals()],
    "input": sys.stdin.read(),
    "leads its session": os.getsid(0) == os.getpid(),
    "signals": [signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "open files": sorted(map(int, os.listdir("/proc/self/fd")))[:3],
    "threads": threading.active_count(),
})
os.write(1, f"{line}\\n".encode())  # at once: ranks share the pipe, and print writes the line and its end apart
"""


@pytest.fixture
def told(tmp_path: Path) -> Path:
    path = tmp_path / "told.py"
    path.write_text(TOLD)
    return path


def test_a_fork_is_told_what_a_process_is_told(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fork, process = (run_process([told, "a", "b c"], {"OF_THE_TEST": "x"}, forked=forked) for forked in (True, False))
    assert fork.stderr == process.stderr == "" and fork.returncode == process.returncode == 0
    found = json.loads(fork.stdout)
    assert found == json.loads(process.stdout)
    assert found["arguments"] == ["a", "b c"] and found["place"]["OF_THE_TEST"] == "x" and found["input"] == ""


def test_ranks_are_told_what_torchruns_are(told: Path) -> None:
    forks, ranks = (
        sorted(map(json.loads, run_ranks(told, 2, "a", forked=forked).stdout.splitlines()), key=str)
        for forked in (True, False)
    )
    assert len(forks) == 2
    for fork, rank in zip(forks, ranks, strict=True):
        for of_torchrun in (fork, rank):
            assert of_torchrun["place"].pop("MASTER_ADDR")  # a name of this machine
        assert fork == rank | {"input": ""}


def test_ranks_meet_again_and_again_and_share_nothing_else(tmp_path: Path) -> None:
    lines = """
    import os, random, sys
    import numpy as np
    import torch, torch.distributed as dist
    from nemo_rpo.config.schema import RunConfig
    from nemo_rpo.megatron import parallel
    cfg = RunConfig()
    cfg.trainer.accelerator = "cpu"
    for _ in range(3):
        parallel.initialize(cfg)
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, (random.random(), np.random.random(), os.getpid()))
        assert all(len(set(values)) == len(found) for values in zip(*found)), found
        parallel.finalize()
    """
    run_ranks(lines, 2)


@pytest.mark.parametrize(
    "ending", ["sys.exit(7)", "sys.exit('no')", "1 / 0", "os._exit(3)", "os.kill(os.getpid(), 9)", ""]
)
def test_it_ends_as_a_process_does(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "ends.py"
    path.write_text(f"import atexit, os, sys\natexit.register(print, 'at exit')\nprint('here', end='')\n{ending}\n")
    fork, process = (run_process([path], forked=forked) for forked in (True, False))
    assert (fork.returncode, fork.stdout, fork.stderr) == (process.returncode, process.stdout, process.stderr)


def test_a_failed_rank_ends_the_others(tmp_path: Path) -> None:
    lines = "import os, sys, time\nsys.exit(4) if os.environ['RANK'] == '1' else time.sleep(100)"
    started = time.monotonic()
    assert run_ranks(lines, 3, check=False).returncode == 4
    assert time.monotonic() - started < 60
    with pytest.raises(AssertionError, match="ended with 4"):
        run_ranks(lines, 2)


def test_apart_nobody_ends_the_others(tmp_path: Path) -> None:
    path = tmp_path / "apart.py"
    path.write_text(
        "import os, sys, time\nrank = int(os.environ['RANK'])\ntime.sleep(rank)\nsys.exit(str(rank) * rank)\n"
    )
    assert run_apart([path], 2) == [(1, "\n"), (1, "1\n")]


def test_ranks_that_hang_say_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="2 ranks hung for 2 s"):
        run_ranks("import time\ndef in_the_midst(): time.sleep(100)\nin_the_midst()", 2, timeout=2)
    assert capsys.readouterr().err.count("in in_the_midst") == 2


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Neither of a rank, nor of one that is killed from outside."""
    lines = "import os, subprocess, sys\nchild = subprocess.Popen(['sleep', '100'])\nprint(child.pid)"
    child = int(run_ranks(lines, 1).stdout)
    deadline = time.monotonic() + 30
    while _runs(child):
        assert time.monotonic() < deadline, "a child outlived its rank"  # the kernel takes its time over a kill
        time.sleep(0.05)
    process = torchrun.start_process(["-m", "http.server", "0"])
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.kill()  # nobody is there, which is no error


def test_importing_the_engine_says_nothing() -> None:
    """What a fork cannot show of the imports before it."""
    run_process(["-m", "nemo_rpo.cli", "--version"])
    server = rank_pool._servers[sys.executable, Path(rank_pool.__file__).parent]
    assert server.said() == ""
