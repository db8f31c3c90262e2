"""The step-0 law: before the first update the margin is 0, the loss ln 2, every posterior η₀; else the run stops."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_world
from engine import CONFIG, places
from plain_re_dpo import BATCH, ETA_INIT, SEED, read_pairs
from torchrun import run_apart, run_ranks

from nemo_rpo.training.logs.metrics import read_metrics

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
TP, PP, VP = (
    f"model.{name}="
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size")
)
BF16, RESIDENT, CACHED = "trainer.precision=bf16", "model.rpo.reference=resident", "model.rpo.reference=cached"
LIVE: dict[int, dict[str, list[str]]] = {
    1: {"swapped": [], "resident": [RESIDENT], "bf16, swapped": [BF16], "bf16, resident": [BF16, RESIDENT]},
    4: {
        "TP=2 × PP=2": [f"{TP}2", f"{PP}2"],
        "TP=2 × PP=2, interleaved, resident": [f"{TP}2", f"{PP}2", f"{VP}2", RESIDENT],
        "TP=2 × DP=2, sequence parallel, bf16": [f"{TP}2", "model.sequence_parallel=true", BF16],
    },
}
# Cached log-probs come from batches of another padded length, so the last bits differ.
COMPUTED_ONCE: dict[int, dict[str, list[str]]] = {
    1: {"cached": [CACHED], "bf16, cached": [BF16, CACHED]},
    4: {"TP=2 × PP=2, cached": [f"{TP}2", f"{PP}2", CACHED]},
}


@pytest.fixture(scope="module")
def first_step(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The figures of step 1, which are those of the weights before it, and the η after it."""
    folders: dict[int, Path] = {}

    def of(layout: str) -> dict[str, Any]:
        [ranks] = [count for count in LIVE if layout in LIVE[count] or layout in COMPUTED_ONCE[count]]
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("ran")
            one_label_a_pair = [f"model.data.data_prefix.train={world / 'single.jsonl'}", "trainer.dpo.max_steps=1"]
            runs = {name: [*one_label_a_pair, *run] for name, run in (LIVE[ranks] | COMPUTED_ONCE[ranks]).items()}
            run_ranks(HERE / "ranks_trajectory.py", ranks, world, folders[ranks], json.dumps(runs), timeout=500)
        [metrics] = [row for row in read_metrics(folders[ranks] / "runs" / layout) if row["split"] == "train"]
        [step] = json.loads((folders[ranks] / f"{layout}.json").read_text())
        return {**metrics, "eta": step["eta"]}

    return of


@pytest.mark.parametrize("layout", [name for group in LIVE.values() for name in group])
def test_policy_and_live_reference_agree_to_the_last_bit(
    first_step: Callable[[str], dict[str, Any]], layout: str
) -> None:
    found = first_step(layout)
    assert found["margin"] == found["rewards_chosen_mean"] == found["rewards_rejected_mean"] == 0.0
    assert found["em/abs_delta_mean"] == 0.0  # of every pair, then
    assert found["loss"] == np.float32(math.log(2))
    assert found["em/posterior_mean"] == pytest.approx(ETA_INIT, abs=1e-7)
    assert found["em/frac_flipped"] == 0.0
    # Each annotator's mean posterior is what moves their η: each of them was η₀, not just their mean.
    assert found["eta"] == pytest.approx([ETA_INIT] * len(tiny_world.RELIABILITY), abs=1e-8)


@pytest.mark.parametrize("layout", [name for group in COMPUTED_ONCE.values() for name in group])
def test_cached_log_probs_agree_within_rounding(first_step: Callable[[str], dict[str, Any]], layout: str) -> None:
    found, allowed = first_step(layout), 0.05 if layout.startswith("bf16") else 1e-5
    assert found["em/abs_delta_mean"] < allowed and abs(found["margin"]) < allowed
    assert found["loss"] == pytest.approx(math.log(2), abs=allowed)
    assert found["em/posterior_mean"] == pytest.approx(ETA_INIT, abs=allowed)


def start(world: Path, folder: Path, *overrides: str, ranks: int = 1) -> list[tuple[int, str]]:
    command = ["-m", "nemo_rpo.cli", "train", "--config-name", CONFIG, "--", *places(world, folder)]
    return run_apart([*command, "trainer.dpo.max_steps=1", CACHED, *overrides], ranks)


@pytest.fixture(scope="module")
def reference(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The cached log-probs that a run on ``model`` leaves."""
    made: dict[str, Path] = {}

    def made_with(model: str) -> Path:
        if model not in made:
            folder = tmp_path_factory.mktemp("reference")
            if model == "other":
                tiny_world.write_model(folder / "other", seed=9)
            weights = f"pretrained_checkpoint.restore_from_path={folder / 'other'}" if model == "other" else TP + "1"
            [(status, said)] = start(world, folder / "run", weights)
            assert status == 0, said
            made[model] = folder / "run" / "reference" / "train.parquet"
        return made[model]

    return made_with


def first_batch(world: Path, sides: list[str]) -> list[int]:
    """Tokens of the responses of the pairs of the first global batch, of those ``sides``."""
    pairs = read_pairs(world)
    order = np.argsort(np.random.PCG64([SEED, 0]).random_raw(len(pairs)), kind="stable")
    return [len(pairs[i][1 + ("chosen", "rejected").index(side)]) for i in order[:BATCH] for side in sides]


def refused(outcomes: list[tuple[int, str]]) -> float:
    """All ranks end with status 2 and the same single line; the log-probs' distance that it gives."""
    found = []
    for rank, (status, said) in enumerate(outcomes):
        assert status == 2, said
        assert "Traceback" not in said
        line = said.splitlines()[-1]
        assert line.startswith(f"error on rank {rank}: " if rank else "error: ")
        assert "the reference is not the policy's starting point" in line and "model.rpo.reference_cache" in line
        found.append(float(re.search(r"differ by up to (\S+) nats a token", line)[1]))
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize(("sides", "ranks"), [(["chosen"], 2), (["chosen", "rejected"], 1)])
def test_a_tampered_reference_stops_the_run(
    world: Path, tmp_path: Path, reference: Callable[[str], Path], sides: list[str], ranks: int
) -> None:
    """Off by the same amount on both sides the margins are 0 all the same, and the reference is as wrong."""
    table = pq.read_table(reference("own"))
    for side in sides:
        name = f"ref_{side}_logps"
        column = pa.array(table[name].to_numpy() + np.float32(3))
        table = table.set_column(table.schema.get_field_index(name), name, column)
    (tmp_path / "reference").mkdir()
    pq.write_table(table, tmp_path / "reference" / "train.parquet")
    outcomes = start(
        world, tmp_path / "run", f"model.rpo.reference_cache={tmp_path / 'reference'}", f"{PP}{ranks}", ranks=ranks
    )
    assert refused(outcomes) == pytest.approx(3 / min(first_batch(world, sides)), rel=1e-2)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_reference_of_other_weights_stops_the_run(
    world: Path, tmp_path: Path, reference: Callable[[str], Path]
) -> None:
    """Even one that claims to be of these weights."""
    table, own = pq.read_table(reference("other")), pq.read_table(reference("own"))
    (tmp_path / "reference").mkdir()
    pq.write_table(table.replace_schema_metadata(own.schema.metadata), tmp_path / "reference" / "train.parquet")
    outcomes = start(world, tmp_path / "run", f"model.rpo.reference_cache={tmp_path / 'reference'}")
    assert refused(outcomes) > 0.1
    shutil.copy(reference("own"), tmp_path / "reference" / "train.parquet")
    [(status, said)] = start(world, tmp_path / "again", f"model.rpo.reference_cache={tmp_path / 'reference'}")
    assert status == 0, said
