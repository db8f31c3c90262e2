"""Reference log-probs are computed once, right, and found again by what a pair holds, never by where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import pyarrow.parquet
import tiny_world
from torchrun import run_ranks

from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import ReferencePolicyError
from nemo_rpo.training.origin import weights_fingerprint
from nemo_rpo.training.reference import file as reference_file
from nemo_rpo.training.reference.file import Logprobs, MadeWith
from nemo_rpo.training.reference.precompute import CachedReference

HERE = Path(__file__).parent
MODEL, TEXT = {"weights": "some", "precision": "32"}, {"tokenizer": "its hash", "truncation": "at 24 tokens"}
MADE_WITH = MadeWith(MODEL, TEXT)
TP, PP, MICRO = (
    f"model.{name}=" for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size")
)
LAYOUTS: dict[int, dict[str, list[str]]] = {
    1: {"one rank": []},
    4: {
        "TP=2 × PP=2": [f"{TP}2", f"{PP}2"],
        "TP=2 × DP=2": [f"{TP}2", f"{MICRO}2"],
        "CP=2 × DP=2": ["model.context_parallel_size=2"],
        "PP=2 × DP=2, packed": [f"{PP}2", "model.data.packed_sequence=true"],
    },
}


# --- computed on ranks


@pytest.fixture(scope="module")
def computed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """Gives what each rank of a layout found."""
    folders: dict[int, Path] = {}

    def by(layout: str) -> list[dict[str, Any]]:
        [ranks] = [count for count, group in LAYOUTS.items() if layout in group]
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("computed")
            script = HERE / "ranks_reference_cache.py"
            run_ranks(script, ranks, world, folders[ranks], json.dumps(LAYOUTS[ranks]), timeout=500)
        return [json.loads((folders[ranks] / f"{layout}.{rank}.json").read_text()) for rank in range(ranks)]

    return by


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [name for group in LAYOUTS.values() for name in group])
def test_computed_once_is_computed_live(computed: Callable[[str], list[dict[str, Any]]], layout: str) -> None:
    [alone] = computed("one rank")
    for found in computed(layout):
        for split, pairs in (("sweep", 160), ("validation", 21)):
            assert found[f"{split}: same batches"] == 0.0
            logprobs = torch.tensor(found[f"{split}: log-probs"])
            assert logprobs.shape == (2, pairs) and (logprobs < 0).all()  # every pair, on every rank
            torch.testing.assert_close(logprobs, torch.tensor(alone[f"{split}: log-probs"]), rtol=0, atol=2e-5)
        assert found["other batches"] < 2e-5  # another padded length: another order of sums


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [name for group in LAYOUTS.values() for name in group])
def test_those_of_the_tokens_add_up(computed: Callable[[str], list[dict[str, Any]]], layout: str) -> None:
    for found in computed(layout):
        for split in ("sweep", "validation"):
            tokens, sums = found[f"{split}: per token"], torch.tensor(found[f"{split}: log-probs"])
            assert len(tokens) == sums.shape[1] and all(value < 0 for pair in tokens for side in pair for value in side)
            added = torch.tensor([[sum(side) for side in pair] for pair in tokens]).t()
            torch.testing.assert_close(added, sums, rtol=0, atol=2e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [name for group in LAYOUTS.values() for name in group])
def test_computing_draws_no_random_number(computed: Callable[[str], list[dict[str, Any]]], layout: str) -> None:
    for found in computed(layout):
        assert found["sweep: random state"] and found["validation: random state"]


# --- kept on disk


Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return tiny_world.rows(24, seed=8)


@pytest.fixture
def cache_of(world: Path, tmp_path: Path) -> Callable[[Iterable[dict[str, Any]]], PreferenceCache]:
    def opened(made: Iterable[dict[str, Any]]) -> PreferenceCache:
        path = tiny_world.write_rows(tmp_path / "train.jsonl", list(made))
        tokenizer = TokenizerSpec(str(world / "model"), use_chat_template=False)
        spec = CacheSpec([path], RowFormat(), tokenizer, seq_length=24, group_votes=True, invalid_pairs="error")
        return open_cache(spec, tmp_path / "cache", num_workers=0)

    return opened


@pytest.fixture
def kept(rows: Rows, cache_of: Callable[..., PreferenceCache], tmp_path: Path) -> Path:
    """A file of log-probs: -i and -100-i of the i-th row."""
    numbers = torch.arange(len(rows), dtype=torch.float32).numpy()
    path = tmp_path / "train.parquet"
    reference_file.write(path, Logprobs(-numbers, -100 - numbers), cache_of(rows), MADE_WITH)
    return path


def refusal(path: Path, cache: PreferenceCache, made_with: MadeWith) -> str:
    with pytest.raises(ReferencePolicyError) as caught:
        reference_file.read(path, cache, made_with)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return str(caught.value)


def test_reordered_filtered_and_renamed_pairs_are_found_again(
    rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache]
) -> None:
    chosen_rows = list(range(len(rows)))[::-2]
    found = reference_file.read(kept, cache_of({**rows[i], "pair_id": f"new{i}"} for i in chosen_rows), MADE_WITH)
    assert found.chosen.tolist() == [-i for i in chosen_rows]
    assert found.rejected.tolist() == [-100 - i for i in chosen_rows]


def test_a_batch_gets_the_log_probs_of_its_pairs(
    rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache]
) -> None:
    found = CachedReference(reference_file.read(kept, cache_of(rows), MADE_WITH))
    batch = [{"pair_index": torch.tensor([7, 2])}, {"pair_index": torch.tensor([5, -1])}]
    found.add_ref_policy_logprobs(batch)
    assert batch[0]["ref_policy_log_probs_chosen"].tolist() == [-7, -2]
    assert batch[1]["ref_policy_log_probs_rejected"].tolist()[0] == -105
    assert torch.isfinite(batch[1]["ref_policy_log_probs_chosen"]).all()  # of the row that only fills up, too


def test_changed_text_is_not_found(rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache]) -> None:
    changed = [dict(row) for row in rows]
    changed[3]["response_a"] += " good0"
    changed[5]["prompt"] = "plain0 " + changed[5]["prompt"]
    said = refusal(kept, cache_of(changed), MADE_WITH)
    assert "has no log-probs for pair 'p3'" in said and "train.jsonl:4; 2 such pairs" in said and "delete it" in said
    assert "its text has changed, or which response is chosen" in said
    # The same with another tokenizer: that is what to look at first.
    said = refusal(kept, cache_of(changed), MadeWith(MODEL, TEXT | {"tokenizer": "another"}))
    assert "computed with tokenizer its hash, this run has another; delete it" in said


def test_a_new_pair_is_told_from_a_changed_one(
    rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache]
) -> None:
    added = {**rows[0], "pair_id": "new", "prompt": "plain0 " + rows[0]["prompt"]}
    said = refusal(kept, cache_of([*rows, added]), MADE_WITH)
    assert "has no log-probs for pair 'new'" in said and "it was not among the pairs then" in said


def test_another_truncation_that_cuts_nothing_is_no_difference(
    rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache]
) -> None:
    found = reference_file.read(kept, cache_of(rows), MadeWith(MODEL, TEXT | {"truncation": "at 48 tokens"}))
    assert found.chosen.tolist() == [-i for i in range(len(rows))]


def test_log_probs_of_tokens_stand_beside_their_sums(
    rows: Rows, cache_of: Callable[..., PreferenceCache], tmp_path: Path
) -> None:
    cache, path = cache_of(rows), tmp_path / "train.parquet"
    tokens, sums = -numpy.ones(cache.lengths[:, 1:].sum(), numpy.float32), -cache.lengths.astype(numpy.float32)
    reference_file.write(path, Logprobs(sums[:, 1], sums[:, 2], tokens), cache, MADE_WITH)
    table = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["pair_id"] for row in table] == [f"p{i}" for i in range(len(rows))]
    for row in table:
        for side in ("chosen", "rejected"):
            assert sum(row[f"ref_{side}_token_logps"]) == row[f"ref_{side}_logps"] < 0
    assert reference_file.read(path, cache, MADE_WITH).chosen.tolist() == sums[:, 1].tolist()


def test_a_pair_that_votes_have_turned_is_not_taken_for_the_old_one(
    rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache]
) -> None:
    other = {"a": "b", "b": "a", "tie": "tie"}
    turned = [dict(row) for row in rows]
    turned[1]["votes"] = [{**vote, "vote": other[vote["vote"]]} for vote in turned[1]["votes"]]
    assert "has no log-probs for pair 'p1'" in refusal(kept, cache_of(turned), MADE_WITH)


@pytest.mark.parametrize(("name", "value"), [("weights", "others"), ("precision", "bf16")])
def test_other_weights_or_precision_are_refused(
    rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache], name: str, value: str
) -> None:
    said = refusal(kept, cache_of(rows), MadeWith(MODEL | {name: value}, TEXT))
    assert f"computed with {name} {MODEL[name]}, this run has {value}" in said
    assert "model.rpo.reference_cache" in said


@pytest.mark.parametrize("damage", ["cut", "nonsense"])
def test_a_damaged_file_is_named(rows: Rows, kept: Path, cache_of: Callable[..., PreferenceCache], damage: str) -> None:
    kept.write_bytes(kept.read_bytes()[:-100] if damage == "cut" else b"nonsense")
    said = refusal(kept, cache_of(rows), MADE_WITH)
    assert "cannot be read" in said and "delete it to compute the reference again" in said


def test_writing_leaves_one_whole_file(kept: Path) -> None:
    assert [path.name for path in kept.parent.glob("*.parquet")] == ["train.parquet"]


# --- which weights


def fingerprint(folder: Path, content: bytes, name: str = "model.safetensors") -> str:
    folder.mkdir()
    (folder / name).write_bytes(content)
    return weights_fingerprint(str(folder))


def test_weights_are_told_apart_wherever_they_differ(tmp_path: Path) -> None:
    """A layer somewhere in the middle of a file of which the beginning, and the size, are the same."""
    content = bytes(9 << 20)
    layer = b"\1" * (200 << 10)
    found = [fingerprint(tmp_path / "zero", content), fingerprint(tmp_path / "same", content)]
    for place in (3 << 20, len(content) - len(layer)):
        changed = content[:place] + layer + content[place + len(layer) :]
        found.append(fingerprint(tmp_path / str(place), changed))
    assert found[0] == found[1] and len(set(found)) == 3


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    content = bytes(1 << 20)
    plain, last_byte = fingerprint(tmp_path / "a", content), fingerprint(tmp_path / "b", content[:-1] + b"\1")
    assert plain != last_byte
    assert plain == fingerprint(tmp_path / "c", content)
    assert plain != fingerprint(tmp_path / "d", content, "other.safetensors")
