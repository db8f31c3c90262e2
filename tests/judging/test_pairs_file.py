"""Pairs of a policy's own responses."""

from __future__ import annotations

import random

import pytest

from nemo_rpo.judging.pairs_file import pairs_of_samples, read_pairs, write_pairs
from nemo_rpo.sampling.asks import Response

MESSAGES = [{"role": "user", "content": "hello"}]
PROMPTS = {"p": ("a text", {"answer": 3}), "q": (MESSAGES, {}), "none": ("nobody answered", {})}
SAMPLES = [Response(key, i, i, f"{key} {i % 3}", 1, "stop") for key in "pq" for i in range(4)]


def test_equal_texts_make_no_pair_and_the_order_of_samples_does_not_matter():
    whole = pairs_of_samples(PROMPTS, SAMPLES, "all", 0)
    assert [pair.pair_id for pair in whole if pair.pair_id[0] == "p"] == ["p:0-1", "p:0-2", "p:1-2", "p:1-3", "p:2-3"]
    assert all(pair.a != pair.b for pair in whole)
    mixed = random.Random(0).sample(SAMPLES, len(SAMPLES))
    for which in ("random", "all"):
        assert pairs_of_samples(PROMPTS, mixed, which, 1) == pairs_of_samples(PROMPTS, SAMPLES, which, 1)
    drawn = {pairs_of_samples(PROMPTS, SAMPLES, "random", seed)[0].pair_id for seed in range(60)}
    assert drawn == {pair.pair_id for pair in whole if pair.pair_id[0] == "p"}
    assert len(pairs_of_samples(PROMPTS, SAMPLES, "random", 0)) == 2


def test_pairs_come_back_as_they_were(tmp_path):
    pytest.importorskip("pyarrow")
    pairs = pairs_of_samples(PROMPTS, SAMPLES, "all", 0)
    write_pairs(tmp_path / "pairs.parquet", pairs, "x")
    assert read_pairs(tmp_path / "pairs.parquet") == (pairs, "x")
