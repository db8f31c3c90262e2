"""Every registered loss trains through the engine, and under TP=2 × PP=2 as on one rank.

Five steps on one batch of 32 pairs: the loss falls on one rank, and each rank layout gives the same numbers in the
first three of them (before an update, after one, and after one that began from the first's optimizer state). The engine
knows of a loss what it declares and nothing else, so several ranks run one loss of each kind; what the losses of a
kind make of the same inputs is their own files' tests. All runs of a layout share one start of its ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import loss_world
from torchrun import run_ranks

from nemo_rpo.losses import build_loss, loss_names

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
STEPS, TOLERANCE = {1: 5, 2: 3, 4: 3}, 1e-5
LAYOUTS = {
    1: [],
    2: ["model.context_parallel_size=2"],
    4: ["model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2", "model.micro_batch_size=8"],
}
SEQUENCE_PARALLEL = "model.sequence_parallel=true"
RANKINGS = "model.data.data_prefix.train={world}/rankings.jsonl"
# Options and settings that lead a loss through another part of the engine: name of the run → loss and overrides, and
# what only several ranks can do.
WAYS: dict[str, tuple[str, list[str], list[str]]] = {
    "a reward head's rankings": ("plackett_luce", ["model.rpo.loss_options={scores: reward}"], [SEQUENCE_PARALLEL]),
    "one group of taste": ("pal", ["model.rpo.loss_options={groups: 1}"], []),
    "a gated preference head": ("gpm", ["model.rpo.loss_options={gated: true}"], [SEQUENCE_PARALLEL]),
    "a reward head beside log-probs": ("bt", ["model.dpo.sft_loss_weight=0.1"], []),
    "a previous iterate of its own": ("inpo", ["model.rpo.previous_iterate={world}/earlier"], []),
    "a previous iterate, resident": (
        "onpo",
        ["model.rpo.previous_iterate={world}/earlier", "model.rpo.reference=resident"],
        [],
    ),
    "a previous iterate beside a cached reference": (
        "inpo",
        ["model.rpo.previous_iterate={world}/earlier", "model.rpo.reference=cached"],
        [],
    ),
    "a reference of its own": ("dpo", ["model.rpo.reference_from={world}/earlier"], []),
    "a reference of its own, resident": (
        "dpo",
        ["model.rpo.reference_from={world}/earlier", "model.rpo.reference=resident"],
        [],
    ),
    "a reference of its own, cached": (
        "dpo",
        ["model.rpo.reference_from={world}/earlier", "model.rpo.reference=cached"],
        [],
    ),
    "a reference of its own, divergence": ("tdpo2", ["model.rpo.reference_from={world}/earlier"], []),
    "start and base π_t, another reference": (
        "inpo",
        ["model.rpo.previous_iterate={world}/model", "model.rpo.reference_from={world}/earlier"],
        [],
    ),
    "divergence, resident reference": ("tdpo2", ["model.rpo.reference=resident"], [SEQUENCE_PARALLEL]),
    "divergence beside all logits": ("tdpo1", ["model.rpo.logprob_head=logits"], []),
    "turns in packs": ("dmpo", ["model.data.packed_sequence=true"], []),
    "ties under the EM's default objective": ("todo", ["model.rpo.objective=induced"], []),
    **{
        f"rankings, {loss}, {how}": (loss, [RANKINGS, f"model.rpo.enabled={em}"], [])
        for loss in ("plackett_luce", "pro", "brain")
        for how, em in (("robust", "true"), ("plain", "false"))
    },
    "rankings by a reward head": (
        "plackett_luce",
        ["model.rpo.loss_options={scores: reward}", RANKINGS, "model.rpo.enabled=false"],
        [SEQUENCE_PARALLEL],
    ),
    "judged alone, in packs": ("kto", ["model.data.packed_sequence=true"], []),
    "judged alone, cached reference": ("bco", ["model.rpo.reference=cached"], []),
    "rankings in packs, divergence": ("tdpo2", [RANKINGS, "model.data.packed_sequence=true"], []),
}
NAMES = [*loss_names(), *WAYS]
# Under context parallelism, where a loss reads more than the sums of responses: one output a response from one rank,
# turns of a response on two, and what a frozen policy predicts at the positions of a rank.
OVER_CONTEXT = ["judged alone, in packs", "a gated preference head", "a reward head beside log-probs", "dmpo", "tdpo2"]


def kind(name: str) -> tuple[object, ...]:
    """What decides what the engine computes for a loss, and what it does with it."""
    loss = build_loss(name)
    return loss.needs, type(loss.reduction), loss.listwise, loss.models_noise, loss.unpaired


KINDS = {kind(name): name for name in loss_names()}
# What is another run by construction once ranks have their parts: robust rankings are pairs under any loss, one group
# of taste is ``bt`` to the bit, and a reference of its own waits where a previous iterate does.
ON_ONE_RANK_ALONE = {
    "one group of taste",
    "rankings, pro, robust",
    "rankings, brain, robust",
    "a reference of its own, resident",
    "a reference of its own, cached",
}
RUNS = {1: NAMES, 2: OVER_CONTEXT, 4: [*KINDS.values(), *(name for name in WAYS if name not in ON_ONE_RANK_ALONE)]}


def overrides(name: str, ranks: int, world: Path) -> list[str]:
    """Read from what the loss declares, as the engine does; a loss of tomorrow is a run of tomorrow."""
    loss, further, of_several = WAYS.get(name, (name, [], []))
    declared = build_loss(loss)
    found = [f"model.rpo.base_loss={loss}", *LAYOUTS[ranks], "model.global_batch_size=32"]
    found += ["model.optim.lr=3e-4", "model.optim.sched.name=constant", "model.optim.sched.warmup_steps=0"]
    if declared.models_noise:
        found.append("model.rpo.enabled=false")
    if declared.needs_link_tau:
        found += ["model.rpo.link_tau=100", "model.rpo.objective=weighted"]
    if "turns" in declared.needs:
        found.append(f"model.data.data_prefix.train={world / 'dialogues.jsonl'}")
    if declared.unpaired:
        found.append(f"model.data.data_prefix.train={world / 'judged_alone.jsonl'}")
    found += [setting.format(world=world) if "{world}" in setting else setting for setting in further]
    return found + (of_several if ranks == 4 else [])


Trajectory = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Trajectory]:
    """Gives the figures of a run; its ranks start when the first run of their number is asked for."""
    world = loss_world.make(tmp_path_factory.mktemp("loss_world"))
    folders: dict[int, Path] = {}

    def steps_of(name: str, ranks: int) -> Trajectory:
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp("ran")
            runs = json.dumps({name: overrides(name, ranks, world) for name in RUNS[ranks]})
            run_ranks(HERE / "ranks_every_loss.py", ranks, world, folders[ranks], str(STEPS[ranks]), runs, timeout=900)
        return json.loads((folders[ranks] / f"{name}.json").read_text(encoding="utf-8"))

    return steps_of


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name: str, trained: Callable[[str, int], Trajectory]) -> None:
    steps = trained(name, 1)
    assert len(steps) == STEPS[1]
    assert steps[-1]["loss"] < steps[0]["loss"] and all(step["grad_norm"] > 0 for step in steps)


@pytest.mark.parametrize(("name", "ranks"), [(name, ranks) for ranks in (4, 2) for name in RUNS[ranks]])
def test_the_layout_changes_nothing(name: str, ranks: int, trained: Callable[[str, int], Trajectory]) -> None:
    found = trained(name, ranks)
    assert len(found) == STEPS[ranks]
    for ours, theirs in zip(found, trained(name, 1), strict=False):
        scale = max(1.0, abs(theirs["loss"]))
        assert abs(ours["loss"] - theirs["loss"]) <= TOLERANCE * scale
        assert abs(ours["grad_norm"] / theirs["grad_norm"] - 1) <= 10 * TOLERANCE


def test_a_reference_of_its_own_is_the_same_wherever_it_waits(trained: Callable[[str, int], Trajectory]) -> None:
    swapped, resident, cached = (
        [step["loss"] for step in trained(f"a reference of its own{where}", 1)]
        for where in ("", ", resident", ", cached")
    )
    assert swapped == resident and cached == pytest.approx(swapped, rel=1e-5)
    assert abs(swapped[0] - trained("dpo", 1)[0]["loss"]) > 1e-4  # at step 0 it is not the policy


def test_one_group_of_taste_is_the_plain_reward_model_to_the_bit(trained: Callable[[str, int], Trajectory]) -> None:
    assert trained("one group of taste", 1) == trained("bt", 1)


def test_several_ranks_run_a_loss_of_every_kind() -> None:
    assert {kind(WAYS.get(name, (name,))[0]) for name in RUNS[4]} == {kind(name) for name in loss_names()}
