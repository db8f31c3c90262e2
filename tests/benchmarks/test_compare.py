"""The speed benchmark measures what it says it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the benchmark's model needs the hf extra")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.compare import systems_table
from benchmarks.process_tree import Ran, run
from benchmarks.speed_world import SEQ_LENGTH, make

MEBIBYTE = 1 << 20


def test_ratios_are_taken_within_a_round_and_the_median_over_rounds() -> None:
    """Of a machine that is three times as slow in the second round, nothing is seen in a ratio."""
    slow = [Ran({"wall": [2.0 * busy] * 3, "cpu": [2.0] * 3}, 400 * MEBIBYTE) for busy in (1, 3, 1)]
    fast = [Ran({"wall": [9.0, 0.5 * busy, 0.5 * busy], "cpu": [1.0] * 3}, 100 * MEBIBYTE) for busy in (1, 3, 1)]
    first, second = systems_table({"slow": slow, "fast": fast}).splitlines()[2:]
    assert first == "| slow | 4.00 | 1.00× | 4.00 | 1.00× | 400 MiB | 1.00× |"
    assert second == "| fast | 16.00 | 4.00× | 8.00 | 2.00× | 100 MiB | 0.25× |"


def test_memory_of_a_process_and_of_what_it_starts() -> None:
    child = "import time; held = bytearray(120 << 20); time.sleep(0.6)"
    parent = f"import json, subprocess, sys; subprocess.run([sys.executable, '-c', '{child}']); print(json.dumps([1]))"
    ran = run([sys.executable, "-c", parent], threads=1)
    assert ran.answer == [1] and 120 * MEBIBYTE < ran.peak_bytes < 300 * MEBIBYTE


def test_a_process_that_fails_ends_the_benchmark_with_its_words() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        run([sys.executable, "-c", "raise ValueError('no such thing')"], threads=1)


def test_the_world_without_the_public_data(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert make(tmp_path, tmp_path / "absent", pairs=40) == "made-up words"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    shares = {}
    for name in ("short", "long"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}_prompts.jsonl").read_text().splitlines()]
        assert len(rows) == 40 and len({(row["prompt"], row["chosen"], row["rejected"]) for row in rows}) == 40
        sizes = [[len(tokenizer.encode(row[key])) for key in ("prompt", "chosen", "rejected")] for row in rows]
        assert all(prompt + max(responses) + 2 <= SEQ_LENGTH for prompt, *responses in sizes)
        prompts, responses = sum(size[0] for size in sizes), sum(sum(size[1:]) for size in sizes)
        shares[name] = 2 * prompts / (2 * prompts + responses)
    assert shares["short"] < 0.25 and 0.45 < shares["long"] < 0.55
