"""The guards on a few crowds of benchmarks/guards.py: silent where nothing is wrong, heard where something is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import guards

SMALLER = 2500


@pytest.mark.parametrize("name", ["one label a pair, 50 annotators", "five labels a pair", "one annotator, 80 % right"])
def test_nothing_is_said_where_nothing_is_wrong(name):
    case = replace(guards.HONEST[name], labels=SMALLER)
    assert [guards.spoken(case, seed) for seed in (1, 2)] == [set(), set()]


@pytest.mark.parametrize("guard", guards.CASES)
def test_each_guard_speaks_on_its_case(guard):
    assert guard in guards.spoken(guards.CASES[guard], 3)
