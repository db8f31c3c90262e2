"""The EM inside the engine's step: what η may depend on, what must not touch it, on what every rank has to agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import tiny_world
from plain_re_dpo import BATCH, BETA, ETA_INIT, SEED, read_pairs
from torchrun import run_ranks

from nemo_rpo.em import EMSettings, Votes, full_batch_em

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
TP, PP, VP, MICRO = (
    f"model.{name}="
    for name in (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "micro_batch_size",
    )
)
WARM_UP = "DP=2, warm-up"
LAYOUTS: dict[int, dict[str, list[str]]] = {
    1: {"one rank": [], "micro-batch 1": [f"{MICRO}1", "model.optim.name=adam"]},
    2: {
        "TP=2": [f"{TP}2"],
        "PP=2, interleaved": [f"{PP}2", f"{VP}2"],
        "DP=2": [f"{MICRO}2", "trainer.distributed_timeout_minutes=7.5"],
        "DP=2, bf16": ["trainer.precision=bf16"],
        WARM_UP: ["model.rpo.warmup_steps=2", "model.optim.name=adam"],
    },
    4: {"TP=2 × PP=2": [f"{TP}2", f"{PP}2", "model.optim.name=adam"], "TP=2 × DP=2": [f"{TP}2"]},
}
ALL = [name for group in LAYOUTS.values() for name in group]
EXACT = [name for name in ALL if name not in (WARM_UP, "DP=2, bf16")]
NAMES = sorted(tiny_world.RELIABILITY)
STEPS = 3

Ranks = list[dict[str, Any]]  # what each rank of a layout saw


@pytest.fixture(scope="module")
def saw(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ranks]:
    """Gives what the ranks of a layout saw; they start when the first layout of their number is asked for."""
    folders: dict[int, Path] = {}

    def ranks_of(layout: str) -> Ranks:
        [count] = [count for count, group in LAYOUTS.items() if layout in group]
        if count not in folders:
            folders[count] = tmp_path_factory.mktemp("saw")
            run_ranks(HERE / "ranks_em_step.py", count, world, folders[count], json.dumps(LAYOUTS[count]), timeout=500)
        return [json.loads((folders[count] / f"{layout}.{rank}.json").read_text()) for rank in range(count)]

    return ranks_of


def batch_of(world: Path, step: int) -> list[list[tuple[str, int]]]:
    """The votes of the pairs of a training batch, by the sampler's published rule."""
    pairs = read_pairs(world)
    order = np.argsort(np.random.PCG64([SEED, 0]).random_raw(len(pairs)), kind="stable")
    return [pairs[i][3] for i in order[step * BATCH : (step + 1) * BATCH]]


def labels_of(votes: list[list[tuple[str, int]]]) -> list[int]:
    return [sum(name == annotator for pair in votes for annotator, _ in pair) for name in NAMES]


@pytest.mark.parametrize("layout", ALL)
def test_every_rank_holds_the_same_bits(saw: Callable[[str], Ranks], layout: str) -> None:
    first, *others = saw(layout)
    for other in others:
        for key in ("eta", "label_counts", "right_sums", "metrics"):
            assert [step[key] for step in other["steps"]] == [step[key] for step in first["steps"]], key
        assert other["sweep"]["eta"] == first["sweep"]["eta"]
        assert other["validation"]["metrics"] == first["validation"]["metrics"]


@pytest.mark.parametrize("layout", EXACT)
def test_eta_does_not_depend_on_the_layout(saw: Callable[[str], Ranks], layout: str) -> None:
    one_rank, here = saw("one rank")[0]["steps"], saw(layout)[0]["steps"]
    # Before the weights move every layout has the same margins, namely 0, and the sums of the EM are exact.
    assert here[0]["eta"] == one_rank[0]["eta"] and here[0]["right_sums"] == one_rank[0]["right_sums"]
    for ours, theirs in zip(here, one_rank, strict=True):
        assert ours["eta"] == pytest.approx(theirs["eta"], abs=1e-7)


@pytest.mark.parametrize("layout", EXACT)
def test_every_label_counts_once(saw: Callable[[str], Ranks], world: Path, layout: str) -> None:
    """Tensor-parallel ranks hold copies of a pair and pipeline stages none: neither may count it again."""
    seen: list[list[tuple[str, int]]] = []
    for step in range(STEPS):
        seen += batch_of(world, step)
        assert saw(layout)[0]["steps"][step]["label_counts"] == labels_of(seen)


def test_warm_up_keeps_eta_and_ignores_the_model(saw: Callable[[str], Ranks], world: Path) -> None:
    steps = saw(WARM_UP)[0]["steps"]
    for step in range(2):
        assert steps[step]["eta"] == [ETA_INIT] * len(NAMES) and steps[step]["step"] == step + 1
        assert steps[step]["label_counts"] == [0] * len(NAMES)
        evidence = [sum(sign for _, sign in votes) for votes in batch_of(world, step)]
        w = [1 / (1 + math.exp(-balance * math.log(ETA_INIT / (1 - ETA_INIT)))) for balance in evidence]
        assert steps[step]["metrics"]["em/posterior_mean"] == pytest.approx(sum(w) / len(w), abs=1e-6)
    assert steps[1]["metrics"]["em/abs_delta_mean"] > 0.01  # there was a margin to ignore
    assert steps[2]["label_counts"] == labels_of(batch_of(world, 2))
    assert steps[2]["eta"] != steps[1]["eta"]


@pytest.mark.parametrize("layout", ALL)
@pytest.mark.parametrize("broken", ["nan gradient", "infinite gradient", "nan log-prob"])
def test_a_gradient_that_is_no_number_moves_nothing(saw: Callable[[str], Ranks], layout: str, broken: str) -> None:
    for rank in saw(layout):
        found = rank[broken]
        assert not found["updated"] and not math.isfinite(found["grad_norm"])
        assert found["unchanged"] and not found["pending"]
        assert math.isnan(found["loss"]) == (broken == "nan log-prob")


@pytest.mark.parametrize("layout", ALL)
def test_training_goes_on_after_a_skipped_step(saw: Callable[[str], Ranks], layout: str) -> None:
    for rank in saw(layout):
        found = rank["after them"]
        assert found["updated"] and not found["unchanged"]
        assert math.isfinite(found["grad_norm"]) and math.isfinite(found["loss"])


@pytest.mark.parametrize("layout", ALL)
def test_evaluation_teaches_the_em_nothing(saw: Callable[[str], Ranks], layout: str) -> None:
    assert not any(rank["validation"]["em noticed"] for rank in saw(layout))


def gathered(ranks: Ranks) -> dict[int, dict[str, Any]]:
    """The validation pairs of all data-parallel ranks, none twice."""
    found: dict[int, dict[str, Any]] = {}
    for rank in ranks:
        if rank["first replica of the last stage"]:
            assert not found.keys() & rank["validation"]["pairs"].keys()
            found |= rank["validation"]["pairs"]
    return {int(index): pair for index, pair in found.items()}


@pytest.mark.parametrize("layout", ALL)
def test_validation_counts_every_pair_once(saw: Callable[[str], Ranks], world: Path, layout: str) -> None:
    """21 pairs in batches of 16: the second one is filled up, and its filling is no pair."""
    ranks, expected = saw(layout), read_pairs(world, "validation.jsonl")
    pairs = gathered(ranks)
    assert sorted(pairs) == list(range(21)) and len(expected) == 21
    validation = ranks[0]["validation"]["metrics"]
    # The EM's state of that moment: after the step that followed the broken ones, before the sweep.
    eta = dict(zip(NAMES, ranks[0]["sweep"]["start"], strict=True)) | {tiny_world.STRANGER: ETA_INIT}
    assert any(name == tiny_world.STRANGER for *_, votes in expected for name, _ in votes)
    losses, margins, posteriors, right = [], [], [], []
    for index, (*_, votes) in enumerate(expected):
        (chosen, rejected), (base_chosen, base_rejected) = pairs[index]["policy"], pairs[index]["reference"]
        delta = torch.tensor(BETA * ((chosen - base_chosen) - (rejected - base_rejected)), dtype=torch.float64)
        share = sum(sign > 0 for _, sign in votes) / len(votes)
        better = (share > 0.5) - (share < 0.5)
        margins.append(better * delta.item())
        right.append(0.5 + 0.5 * better * ((delta > 0).item() - (delta < 0).item()))
        w = torch.sigmoid(delta + sum(sign * math.log(eta[name] / (1 - eta[name])) for name, sign in votes))
        posteriors.append(w.item())
        losses.append(-(share * delta.sigmoid().log() + (1 - share) * (-delta).sigmoid().log()).item())
    assert validation["loss"] == pytest.approx(sum(losses) / 21, abs=1e-5)
    assert validation["em/posterior_mean"] == pytest.approx(sum(posteriors) / 21, abs=1e-5)
    assert validation["margin"] == pytest.approx(sum(margins) / 21, abs=1e-5)
    assert validation["acc"] == pytest.approx(sum(right) / 21, abs=1e-12)


@pytest.mark.parametrize("layout", ALL)
def test_the_sweep_over_ranks_is_the_sweep_of_one_process(saw: Callable[[str], Ranks], layout: str) -> None:
    ranks = saw(layout)
    parts = [rank["sweep"] for rank in ranks if rank["first replica of the last stage"]]
    delta = torch.tensor([value for part in parts for value in part["delta"]])
    annotator = torch.tensor([votes for part in parts for votes in part["annotator"]])
    sign = torch.tensor([votes for part in parts for votes in part["sign"]])
    assert len(delta) == 160 and delta.abs().max() > 0.1
    start = torch.tensor(ranks[0]["sweep"]["start"], dtype=torch.float64)
    expected = full_batch_em(delta, Votes(annotator, sign), start, EMSettings())
    for rank in ranks:
        found = rank["sweep"]
        assert found["eta"] == found["model's eta"] == expected.eta.tolist()  # exact sums: the very same bits
        assert found["counts"] == expected.counts.tolist() and found["iterations"] == expected.iterations
        assert found["log_likelihood"] == pytest.approx(float(expected.log_likelihood), rel=1e-12)


@pytest.mark.parametrize("layout", ALL)
def test_a_refit_is_that_of_the_first_rank(saw: Callable[[str], Ranks], layout: str) -> None:
    """1e-9 of noise in the last rank's refit is gone after it; without the broadcast it would stay, unseen."""
    ranks = [rank["agreement"] for rank in saw(layout)]
    assert all(rank["moved"] for rank in ranks)
    for rank in ranks[1:]:
        assert rank["eta"] == ranks[0]["eta"] and rank["prior"] == ranks[0]["prior"]
    expected = f"the annotators' reliabilities on rank {len(ranks) - 1} differ from those of the other ranks after"
    assert all(rank["said"].startswith(expected if len(ranks) > 1 else "") for rank in ranks)
    assert all(bool(rank["said"]) == (len(ranks) > 1) for rank in ranks)


@pytest.mark.parametrize("layout", ALL)
def test_the_label_model_is_fitted_over_the_ranks(saw: Callable[[str], Ranks], layout: str) -> None:
    """The same bits on all ranks of a layout, and on every layout what one rank finds alone."""
    ranks = [rank["label model"] for rank in saw(layout)]
    [alone] = [rank["label model"] for rank in saw("one rank")]
    assert alone["names"] == ["skill", "slot"] and alone["right"] > alone["by votes"] + 0.05
    for rank in ranks:
        assert rank["eta"] == ranks[0]["eta"] and rank["evidence"] == ranks[0]["evidence"]
    np.testing.assert_allclose(ranks[0]["eta"], alone["eta"], atol=1e-6)
    np.testing.assert_allclose(ranks[0]["evidence"], alone["evidence"], atol=1e-4)


def test_the_time_out_of_every_group_is_set(saw: Callable[[str], Ranks]) -> None:
    assert [rank["time-outs"] for rank in saw("DP=2")] == [[450.0, 450.0]] * 2
    assert [rank["time-outs"] for rank in saw("TP=2")] == [[1800.0, 1800.0]] * 2


def test_one_rank_of_a_node_works_for_all(saw: Callable[[str], Ranks]) -> None:
    """As data files are hashed: once on this machine, the result everywhere, and the failure too."""
    for layout in ("TP=2", "TP=2 × DP=2"):
        ranks = [rank["shared work"] for rank in saw(layout)]
        assert [rank["done"] for rank in ranks] == [[0], *([[]] * (len(ranks) - 1))]
        assert all(rank["found"] == 42 and rank["said"] == "not here" for rank in ranks)
