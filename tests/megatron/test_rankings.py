"""Rankings of two to four responses through the engine: the numbers of plain torch under every layout, with the EM and
without, packed or padded, from a live reference or a cached one; and what the EM makes of who reverses them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import tiny_world
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
STEPS, TOTAL = 6, 12  # of two epochs of 96 rankings, 16 a step
TOLERANCE = 1e-5
NAMES = sorted(tiny_world.RELIABILITY)
TP, PP, VP, MICRO = (
    f"model.{name}="
    for name in (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "micro_batch_size",
    )
)
PACKED, ONE_PROMPT = ["model.data.packed_sequence=true"], "model.data.share_prompts=always"
TWO_PROMPTS = "model.data.share_prompts=never"
CACHED, RESIDENT = "model.rpo.reference=cached", "model.rpo.reference=resident"
SHORT = ["trainer.dpo.max_steps=6", f"model.optim.sched.max_steps={TOTAL}"]
BUFFER = [
    "model.rpo.estimator=buffer",
    "model.rpo.buffer.refit_every=2",
    "model.rpo.buffer.min_information=0",
    "model.rpo.buffer.min_gain=-1e9",
    "model.rpo.buffer.margins=latest",
]

LOSSES = {
    f"{loss}, {'robust' if em else 'plain'}": (loss, em) for loss in ("plackett_luce", "pro", "brain") for em in (1, 0)
}
# By number of ranks: name → the loss whose numbers it has to give, and overrides.
WAYS: dict[int, dict[str, tuple[str, list[str]]]] = {
    1: {
        **{name: (name, []) for name in LOSSES},
        "micro-batch 16, resident": ("plackett_luce, robust", [f"{MICRO}16", RESIDENT]),
        "packed, one prompt": ("plackett_luce, robust", [*PACKED, ONE_PROMPT]),
        "packed, a prompt each": ("pro, robust", [*PACKED, TWO_PROMPTS]),
    },
    4: {
        **{f"{name}, TP=2 × PP=2": (name, [f"{TP}2", f"{PP}2"]) for name in LOSSES},
        "TP=2 × DP=2, cached": ("plackett_luce, robust", [f"{TP}2", CACHED]),
        "PP=2 × DP=2, packed, one prompt": ("brain, robust", [f"{PP}2", *PACKED, ONE_PROMPT]),
        "PP=2 × DP=2, packed, plain": ("pro, plain", [f"{PP}2", *PACKED, ONE_PROMPT]),
    },
}
FURTHER: dict[int, dict[str, list[str]]] = {
    1: {
        "a loss of pairs": ["model.rpo.base_loss=dpo", *SHORT],
        "buffer": [*BUFFER, *SHORT],
        "whom to believe": [
            "model.data.data_prefix.train={world}/reversed.jsonl",
            "model.rpo.estimator=buffer",
            "model.rpo.buffer.refit_every=5",
        ],
        "rankings of two": ["model.data.data_prefix.train={world}/rankings_of_two.jsonl", *SHORT],
        "their pairs": ["model.data.data_prefix.train={world}/their_pairs.jsonl", *SHORT],
    },
    4: {"buffer, TP=2 × DP=2": [*BUFFER, *SHORT, f"{TP}2", f"{MICRO}2"]},
}

Trajectory = list[dict[str, Any]]


def overrides(loss: str, em: int, further: list[str]) -> list[str]:
    return [f"model.rpo.base_loss={loss}", f"model.rpo.enabled={'true' if em else 'false'}", *SHORT, *further]


def runs_of(ranks: int, world: Path) -> dict[str, list[str]]:
    data = f"model.data.data_prefix.train={world / 'rankings.jsonl'}"
    runs = {name: overrides(*LOSSES[of], further) for name, (of, further) in WAYS[ranks].items()}
    runs |= {name: ["model.rpo.base_loss=plackett_luce", *further] for name, further in FURTHER[ranks].items()}
    return {name: [data, *(setting.replace("{world}", str(world)) for setting in run)] for name, run in runs.items()}


@pytest.fixture(scope="module")
def launched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trajectory]:
    """Gives the trajectory of a run; its ranks start when the first run of their number is asked for."""
    folders: dict[int, Path] = {}

    def trajectory_of(name: str) -> Trajectory:
        [ranks] = [count for count in WAYS if name in WAYS[count] or name in FURTHER[count]]
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("ran")
            runs = json.dumps(runs_of(ranks, world))
            run_ranks(HERE / "ranks_trajectory.py", ranks, world, folders[ranks], runs, timeout=600)
        return json.loads((folders[ranks] / f"{name}.json").read_text(encoding="utf-8"))

    return trajectory_of


@pytest.fixture(scope="module")
def plain(world: Path) -> Callable[[str], Trajectory]:
    """Gives the trajectory of plain torch."""
    import plain_rankings

    found: dict[str, Trajectory] = {}

    def trajectory_of(name: str) -> Trajectory:
        if name not in found:
            loss, em = LOSSES[name]
            found[name] = plain_rankings.trajectory(world, loss, bool(em), STEPS, TOTAL)
        return found[name]

    return trajectory_of


def largest_differences(ours: Trajectory, theirs: Trajectory) -> dict[str, float]:
    steps = list(zip(ours, theirs, strict=True))
    return {
        "loss": max(abs(a["loss"] - b["loss"]) / max(1.0, abs(b["loss"])) for a, b in steps),
        "grad_norm": max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in steps),
        "eta": max(abs(x - y) for a, b in steps for x, y in zip(a["eta"], b["eta"], strict=True)),
    }


@pytest.mark.parametrize("way", [way for ways in WAYS.values() for way in ways])
def test_plain_torch_gives_the_same_numbers(
    way: str, launched: Callable[[str], Trajectory], plain: Callable[[str], Trajectory]
) -> None:
    [of] = [ways[way][0] for ways in WAYS.values() if way in ways]
    found = largest_differences(launched(way), plain(of))
    assert all(value <= TOLERANCE for value in found.values()), found


def test_a_loss_of_pairs_takes_a_ranking_as_its_pairs(launched: Callable[[str], Trajectory]) -> None:
    """On a pair Plackett-Luce is DPO, and the EM knows nothing but pairs."""
    found = largest_differences(launched("a loss of pairs"), launched("plackett_luce, robust"))
    assert max(found.values()) == 0, found


def test_a_ranking_of_two_is_a_pair(launched: Callable[[str], Trajectory]) -> None:
    assert launched("rankings of two") == launched("their pairs")


def test_the_margin_buffer_is_the_same_on_any_ranks(launched: Callable[[str], Trajectory]) -> None:
    one, several = launched("buffer"), launched("buffer, TP=2 × DP=2")
    assert one[-1]["eta"] != one[0]["eta"]
    found = largest_differences(several, one)
    # A refit's η, within the tolerance, is a factor of the gradient's parts, which cancel to some tenths.
    allowed = {"loss": TOLERANCE, "eta": TOLERANCE, "grad_norm": 5 * TOLERANCE}
    assert found.keys() == allowed.keys() and all(found[name] <= allowed[name] for name in found), found


def test_who_reverses_rankings_is_not_believed(launched: Callable[[str], Trajectory]) -> None:
    eta = dict(zip(NAMES, launched("whom to believe")[-1]["eta"], strict=True))
    assert eta.pop("eve") < 0.3 and min(eta.values()) > 0.6, eta
