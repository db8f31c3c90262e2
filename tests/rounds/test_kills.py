"""A loop that is killed at random moments ends with the files of one that is not.

``NEMO_RPO_KILLS=20 pytest tests/rounds/test_kills.py`` kills it twenty times.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path

import psutil
import pytest
from paths import environment
from rank_pool import descendants
from torchrun import start_process

from . import worlds

pytestmark = pytest.mark.distributed
KILLS = int(os.environ.get("NEMO_RPO_KILLS", "4"))


def killed_after(seconds: float, command: list[str]) -> bool:
    """Whether SIGKILL came before the loop's own end."""
    with open(os.devnull, "w") as nowhere:
        process = start_process(command, environment(), output=nowhere)
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        running = process.poll() is None
        tree = descendants(process)
        process.kill()
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(tree, timeout=30)
    return running


def test_a_loop_killed_at_random_moments_ends_with_the_same_files(world: Path, unbroken: Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "loop", random.Random(7)
    changed = {"anchors": worlds.anchors(world)}
    command = worlds.arguments(world, folder, **changed)
    kills = 0
    for _ in range(3 * KILLS):
        if kills == KILLS:
            break
        kills += killed_after(moments.uniform(0.3, 4.0 if KILLS < 10 else 2.0), command)
        if (folder / "round=002/report.html").exists():
            break
    worlds.iterate(world, folder, **changed)
    assert kills >= min(KILLS, 3)
    found, expected = worlds.contents(folder), worlds.contents(unbroken)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
