"""What is written of a million pairs: the values that a loop over them gives, without the loop."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'nemo-rpo[mcore]'")
import pyarrow as pa
import pyarrow.parquet as parquet

from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.cache import arrow
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation import scores
from nemo_rpo.evaluation.judgements import judge
from nemo_rpo.training.outputs import record
from nemo_rpo.training.reference import file as reference

IDS = ["a", "", "ünïcode-⚖", "x" * 40, "10"]
SECONDS_A_ROW = 3e-6  # of one CPU; a loop that decodes an id and a place a row took 5.8e-6 for these two columns alone


class Columns:
    """As much of a token cache as its writers ask for: ``n`` pairs from two files, one vote each, and some more."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng(0)
        text = [(IDS[i] if i < len(IDS) else f"pair-{i}").encode() for i in range(n)]
        self.text, self.start = np.frombuffer(b"".join(text), np.uint8), np.cumsum([0, *map(len, text)])
        self.files, self.source = ["one.jsonl", "two.jsonl"], np.stack((np.arange(n) % 2, np.arange(n) + 1), 1)
        self.lengths = rng.integers(1, 4, (n, 3)).astype(np.int32)
        self.content_hash = rng.integers(0, 255, (n, 16)).astype(np.uint8)
        self.gold = rng.integers(-1, 2, n).astype(np.int8)
        self.annotators = AnnotatorTable(Annotator(name, n, "one.jsonl:1") for name in (VIRTUAL, "eve"))
        self.pair = np.sort(np.concatenate((np.arange(n), rng.integers(0, n, n // 2))))
        self.annotator = rng.integers(0, 2, len(self.pair))
        self.sign = rng.choice((-1, 1), len(self.pair)).astype(np.int8)
        self.tokens = rng.integers(0, 9, 100).astype(np.int32)
        self.begins = rng.integers(0, 3, n).astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def all_votes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.pair, self.annotator, self.sign

    def all_pair_ids(self) -> tuple[np.ndarray, np.ndarray]:
        return self.text, self.start

    def all_sources(self) -> np.ndarray:
        return self.source

    def all_prompts(self) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens, self.begins

    def scored_lengths(self) -> np.ndarray:
        return self.lengths[:, 1:].astype(np.int64)

    def pair_id(self, i: int) -> str:
        return self.text[self.start[i] : self.start[i + 1]].tobytes().decode()

    def where(self, i: int) -> str:
        file, row = self.source[i]
        return f"{self.files[file]}:{row}"


def seen(n: int) -> np.ndarray:
    found = np.random.default_rng(1).normal(size=(n, 3)).astype(np.float32)
    found[:, 1] = 1 / (1 + np.exp(-found[:, 1]))
    found[n // 2 : n // 2 + 3] = np.nan
    return found


def test_posteriors_are_those_of_a_loop(tmp_path: Path) -> None:
    cache = Columns(50)
    tau = np.linspace(1, 3, 50)
    record.write_posteriors(tmp_path, 7, cache, seen(50), np.array([0.5, 2.0]), tau)
    table = parquet.read_table(tmp_path / record.POSTERIORS)
    assert [str(table.schema.field(name).type) for name in ("pair_id", "annotator", "source")] == ["string"] * 3
    rows = table.to_pydict()
    assert rows["pair_id"] == [cache.pair_id(i) for i in cache.pair]
    assert rows["source"] == [cache.where(i) for i in cache.pair]
    assert rows["annotator"] == [None if a == 0 else "eve" for a in cache.annotator]
    for i, (pair, delta, w) in enumerate(zip(cache.pair, rows["delta_last"], rows["w_last"], strict=True)):
        if np.isnan(seen(50)[pair, 2]):
            assert delta is w is rows["flipped"][i] is rows["w_first"][i] is None
        else:
            of_pair = np.flatnonzero(cache.pair == pair)
            logit = delta / tau[pair] + sum(cache.sign[v] * [0.5, 2.0][cache.annotator[v]] for v in of_pair)
            assert w == pytest.approx(1 / (1 + np.exp(-cache.sign[i] * logit)), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_margins_of_any_size_are_written(tmp_path: Path) -> None:
    """±1e4 decides; what is no number is as good as unseen."""
    cache, sights = Columns(8), seen(8)
    sights[:, 2] = [1e4, -1e4, np.inf, -np.inf, np.nan, 0, 1, -1]
    record.write_posteriors(tmp_path, 1, cache, sights, np.array([0.5, 2.0]), 1.0)
    rows = parquet.read_table(tmp_path / record.POSTERIORS).to_pydict()
    for pair, sign, delta, w in zip(rows["pair"], rows["sign"], rows["delta_last"], rows["w_last"], strict=True):
        if pair < 2:
            assert abs(delta) == 1e4 and w == float(sign * delta > 0)
        else:
            assert (w is None) == (delta is None) == (pair < 5)
    record.write_validation(tmp_path, 1, {"": (cache, sights[:, 2])})
    held_out = parquet.read_table(tmp_path / record.VALIDATION).to_pydict()
    assert sorted(set(held_out["pair"])) == [0, 1, 5, 6, 7]


def test_a_reference_file_is_that_of_a_loop(tmp_path: Path) -> None:
    cache, made_with = Columns(50), reference.MadeWith({"weights": "w"}, {"tokenizer": "t"})
    ends = cache.scored_lengths().reshape(-1).cumsum()
    tokens, sums = np.arange(ends[-1], dtype=np.float32), seen(50)
    reference.write(tmp_path / "ref.parquet", reference.Logprobs(sums[:, 1], sums[:, 2], tokens), cache, made_with)
    rows = parquet.read_table(tmp_path / "ref.parquet").to_pydict()
    assert rows["pair_id"] == [cache.pair_id(i) for i in range(50)]
    assert rows["content_hash"] == [row.tobytes() for row in cache.content_hash]
    pieces = [piece.tolist() for piece in np.split(tokens, ends[:-1])]
    assert rows["ref_chosen_token_logps"] == pieces[::2] and rows["ref_rejected_token_logps"] == pieces[1::2]
    read = reference.read(tmp_path / "ref.parquet", cache, made_with)
    np.testing.assert_array_equal(read.chosen, sums[:, 1])
    spoilt = parquet.read_table(tmp_path / "ref.parquet").set_column(1, "content_hash", pa.array([1] * 50))
    parquet.write_table(spoilt, tmp_path / "other.parquet")
    with pytest.raises(reference.ReferencePolicyError, match="column content_hash is not the"):
        reference.read(tmp_path / "other.parquet", cache, made_with)


def test_scores_are_those_of_a_loop() -> None:
    cache, delta = Columns(50), np.arange(50, dtype=np.float32)
    found = scores.scores_of(cache, delta)
    assert found.pair_id.tolist() == [cache.pair_id(i) for i in cache.pair]
    prompts = [
        hashlib.blake2b(cache.tokens[begin : begin + length].tobytes(), digest_size=8).hexdigest()
        for begin, length in zip(cache.begins, cache.lengths[:, 0], strict=True)
    ]
    assert found.prompt.tolist() == [prompts[i] for i in cache.pair]
    np.testing.assert_array_equal(found.delta, cache.pair.astype(float))


@pytest.mark.filterwarnings("error")
def test_a_policy_is_judged_by_margins_of_any_size_but_by_numbers() -> None:
    cache, delta = Columns(50), 1e4 * np.where(np.arange(50) % 2, 1, -1).astype(np.float32)
    found = judge(scores.scores_of(cache, delta), 10, 0)
    assert all(np.isfinite(value) for estimate in found.values() for value in estimate)
    delta[7] = np.inf
    with pytest.raises(DataError, match=r"1 of 50 pairs have a margin that is no finite number, the first 'pair-7'"):
        scores.scores_of(cache, delta)


@pytest.mark.parametrize("what", ["labels", "reference", "scores"])
def test_a_row_costs_no_python(what: str) -> None:
    n = 200_000
    cache, delta = Columns(n), np.zeros(n, np.float32)
    work = {
        "labels": lambda: record._label_columns(cache, *cache.all_votes()),
        "reference": lambda: (arrow.pair_ids(cache), arrow.content_hashes(cache)),
        "scores": lambda: scores.scores_of(cache, delta),
    }[what]
    began = time.process_time()
    work()
    seconds = (time.process_time() - began) / n
    print(f"{what}: {seconds * 1e9:.0f} ns a pair")
    assert seconds < SECONDS_A_ROW
