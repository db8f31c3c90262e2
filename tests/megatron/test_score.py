"""``nemo-rpo score``: what one layout has computed, runs under another train with, and only the runs it is for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import pyarrow.parquet
from engine import CONFIG, places
from test_trajectory import TOLERANCE, largest_differences
from torchrun import run_process, run_ranks

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_process(["-m", "nemo_rpo.cli", name, "--config-name", str(CONFIG), *arguments], timeout=300)


@pytest.fixture(scope="module")
def scored(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of files that two tensor-parallel ranks have written, from packs."""
    folder = tmp_path_factory.mktemp("scored")
    layout = ["model.tensor_model_parallel_size=2", "model.data.packed_sequence=true"]
    files = [f"model.rpo.reference_cache={folder}", f"model.data.data_prefix.validation={world / 'validation.jsonl'}"]
    ran = command("score", "--per-token", *places(world, folder / "run"), *files, *layout)
    assert ran.returncode == 0, ran.stderr
    assert f"{folder}/train.parquet: reference log-probs of 160 pairs" in ran.stderr
    return folder


def test_a_file_for_each_split(scored: Path) -> None:
    assert sorted(path.name for path in scored.glob("*")) == ["train.parquet", "validation.parquet"]
    table = pyarrow.parquet.read_table(scored / "train.parquet")
    assert table.num_rows == 160 and "ref_chosen_token_logps" in table.column_names


def test_each_pair_of_a_ranking_has_its_tokens(world: Path, tmp_path: Path) -> None:
    """Its responses run once: padded in a grid or end to end in packs, every pair that has one has all of it."""
    data = f"model.data.data_prefix.train={world / 'rankings.jsonl'}"
    for way in ("false", "true"):
        place = [f"model.rpo.reference_cache={tmp_path / way}", f"model.data.packed_sequence={way}"]
        ran = command("score", "--per-token", *places(world, tmp_path / "run"), data, *place)
        assert ran.returncode == 0, ran.stderr
    tables = [pyarrow.parquet.read_table(tmp_path / way / "train.parquet").to_pylist() for way in ("false", "true")]
    for padded, packed in zip(*tables, strict=True):
        for side in ("chosen", "rejected"):
            tokens = padded[f"ref_{side}_token_logps"]
            assert tokens and sum(tokens) == pytest.approx(padded[f"ref_{side}_logps"], abs=1e-4)
            assert tokens == pytest.approx(packed[f"ref_{side}_token_logps"], abs=1e-5)


def test_runs_of_another_layout_train_with_it(world: Path, scored: Path, tmp_path: Path) -> None:
    cached = ["model.rpo.reference=cached", f"model.rpo.reference_cache={scored}"]
    run_ranks(HERE / "ranks_trajectory.py", 1, world, tmp_path, json.dumps({"cached": cached}))
    found, committed = (json.loads(path.read_text()) for path in (tmp_path / "cached.json", HERE / "trajectory.json"))
    differences = largest_differences(found, committed)
    assert all(value <= TOLERANCE for value in differences.values()), differences
    assert not (tmp_path / "runs" / "cached" / "reference").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainer.precision=bf16", "computed with precision 32, this run has bf16"),
        # Half of the prompts are cut now: other ids, hence other hashes.
        ("model.encoder_seq_length=12", "computed with truncation prompt-left-keep-bos/1 at 24 tokens, this run has"),
    ],
)
def test_a_run_that_it_is_not_for_is_told_what_differs(
    world: Path, scored: Path, tmp_path: Path, setting: str, said: str
) -> None:
    cached = ["model.rpo.reference=cached", f"model.rpo.reference_cache={scored}"]
    ran = command("train", *places(world, tmp_path / "run"), *cached, setting)
    assert ran.returncode == 2 and said in ran.stderr and ran.stderr.count("error: ") == 1
