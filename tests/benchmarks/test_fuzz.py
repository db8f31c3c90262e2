"""A short run of the fuzzer: damaged inputs are refused in one line, and nothing is left half-written."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from paths import ROOT

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
pytest.importorskip("tokenizers", reason="token caches need tokenizers: pip install 'nemo-rpo[hf]'")

CASES, WHOLE = 120, 80


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import fuzz

    return fuzz


@pytest.fixture(scope="module")
def prepared(fuzz, tmp_path_factory):
    return fuzz.prepare(tmp_path_factory.mktemp("prepared"))


def test_damaged_inputs(fuzz, prepared):
    found, wrong = Counter(), []
    for seed in range(100_000, 100_000 + CASES):  # others than those of a long run from 0
        name, kind, said = fuzz.run_case(seed, prepared)
        found[kind] += 1
        if kind == "WRONG":
            wrong.append(f"python benchmarks/fuzz.py --cases 1 --seed {seed}: {name}: {said}")
    assert not wrong, "\n".join(wrong)
    assert found["taken"] > CASES / 20 and found["refused"] > CASES / 5, found


def test_whole_inputs_are_taken(fuzz, prepared, monkeypatch):
    """A target that refuses its own input would refuse every damaged one too."""
    for module in ("data", "readers"):
        monkeypatch.setattr(f"fuzzing.{module}.damage_bytes", lambda rng, data: data)
        monkeypatch.setattr(f"fuzzing.{module}.damage_value", lambda rng, value, times=1: value)
    taken, seen = Counter(), Counter()
    for seed in range(WHOLE):
        name, kind, said = fuzz.run_case(seed, prepared)
        assert kind != "WRONG", f"{seed}: {name}: {said}"
        taken[name] += kind == "taken"
        seen[name] += 1
    # A file may still be missing, a column be renamed to none, and a YAML file's lines are damaged on the spot.
    assert {name for name, count in seen.items() if count > 5 and not taken[name]} <= {"YAML"}
    assert sum(taken.values()) > WHOLE / 2
