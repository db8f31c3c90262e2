"""The state of a million pairs costs a save its bytes, in equal parts, and next to no time; nobody prints it."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from paths import ROOT
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

PAIRS, RANKS = 1_000_000, 2


def test_the_pairs_are_shared_out_and_silent() -> None:
    ran = run_ranks(ROOT / "benchmarks" / "save_cost.py", RANKS, "--pairs", str(PAIRS), "--rounds", "2")
    assert ran.stderr == ""
    lines = [line for line in ran.stdout.splitlines() if "bytes a rank" in line]
    figures = [
        (
            [float(seconds) for seconds in re.findall(r"([\d.]+) s", line)],
            json.loads(line.partition("bytes a rank: ")[2]),
        )
        for line in lines
    ]
    assert len(figures) == 4
    for (plain_seconds, plain), (seconds, with_pairs) in (figures[:2], figures[2:]):
        added = [more - less for more, less in zip(with_pairs, plain, strict=True)]
        # 16 bytes a pair over the ranks; some thousands of the annotators and of names beside them.
        assert all(abs(of_rank - 16 * PAIRS / RANKS) < 0.01 * 16 * PAIRS / RANKS for of_rank in added), added
        assert all(more - less < 0.5 for more, less in zip(seconds, plain_seconds, strict=True)), figures
