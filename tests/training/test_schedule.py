"""Which steps a run has, which pairs each of them trains on, and what happens after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_rpo.config.arithmetic.rate import RateSchedule
from nemo_rpo.config.schema import DPOTrainerConfig, RunConfig, SchedConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.training.schedule import Schedule, batches_of

BATCHES = 50  # global batches that the data of these tests has


@pytest.mark.parametrize(
    ("setting", "batches"),
    [(0, 0), (1, 1), (7, 7), (80, 50), (0.0, 0), (0.5, 25), (1.0, 50), (1e-9, 1), (0.99, 50)],
)
def test_a_float_is_a_share_and_a_whole_number_counts(setting: float, batches: int) -> None:
    assert batches_of(setting, BATCHES) == batches


def test_one_is_a_batch_and_one_point_zero_all_of_them() -> None:
    assert (batches_of(1, BATCHES), batches_of(1.0, BATCHES)) == (1, BATCHES)


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({}, 50),
        ({"max_epochs": 3}, 150),
        ({"max_epochs": 3, "max_steps": 70}, 70),
        ({"max_epochs": 3, "max_steps": 700}, 150),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 75),
        ({"max_epochs": 3, "limit_train_batches": 10}, 30),
    ],
)
def test_total_steps(settings: dict, total: int) -> None:
    assert Schedule.of(DPOTrainerConfig(**settings), BATCHES).total_steps == total


def test_a_limited_epoch_still_moves_on_to_the_next_order_of_the_data() -> None:
    """Epoch 2 begins at the sampler's second permutation, not where the limit cut the first one."""
    schedule = Schedule.of(DPOTrainerConfig(max_epochs=3, limit_train_batches=10), BATCHES)
    steps = range(1, schedule.total_steps + 1)
    assert [schedule.data_step(step) for step in steps] == [*range(10), *range(50, 60), *range(100, 110)]
    assert [schedule.epoch(step) for step in steps] == [0] * 10 + [1] * 10 + [2] * 10
    assert [step for step in steps if schedule.ends_epoch(step)] == [10, 20, 30]


def test_validation_and_checkpoints() -> None:
    schedule = Schedule.of(DPOTrainerConfig(max_steps=25, val_check_interval=0.2, save_interval=8), BATCHES)
    steps = range(1, schedule.total_steps + 1)
    assert [step for step in steps if schedule.validates(step)] == [10, 20, 25]  # and at the end
    assert [step for step in steps if schedule.saves(step)] == [8, 16, 24, 25]


def test_zero_means_never_except_for_the_last_checkpoint() -> None:
    schedule = Schedule.of(DPOTrainerConfig(max_steps=25, val_check_interval=0, save_interval=0), BATCHES)
    steps = range(1, schedule.total_steps + 1)
    assert not any(map(schedule.validates, steps))
    assert [step for step in steps if schedule.saves(step)] == [25]


def test_a_run_without_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit_train_batches=0 trains nothing"):
        Schedule.of(DPOTrainerConfig(limit_train_batches=0), BATCHES)


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.one_of(st.integers(1, 60), st.floats(0.01, 1.0)),
    st.integers(1, 30),
)
def test_every_epoch_visits_each_of_its_batches_once(batches: int, epochs: int, limit: float, longer: int) -> None:
    settings = DPOTrainerConfig(max_epochs=epochs, limit_train_batches=limit)
    schedule = Schedule.of(settings, batches)
    visited = [schedule.data_step(step) for step in range(1, schedule.total_steps + 1)]
    assert len(set(visited)) == len(visited) == epochs * schedule.steps_per_epoch
    assert visited == sorted(visited) and visited[-1] < epochs * batches
    # A run that is given more epochs has had the same steps so far: resuming is arithmetic.
    more = Schedule.of(replace(settings, max_epochs=epochs + longer), batches)
    assert [more.data_step(step) for step in range(1, schedule.total_steps + 1)] == visited


def rates(total: int, name: str = "CosineAnnealing", **sched: float) -> list[float]:
    """The rate that the engine's optimizer runs each of ``total`` steps at, relative to the peak."""
    from nemo_rpo.megatron.optim.optimizer import build_scheduler

    cfg = RunConfig()
    cfg.model.optim.lr, cfg.model.optim.sched = 1.0, SchedConfig(name=name, **sched)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    optimizer.param_groups[0] |= {"max_lr": 1.0, "min_lr": cfg.model.optim.sched.min_lr}
    scheduler, found = build_scheduler(optimizer, cfg, total), []
    for _ in range(total):
        scheduler.step(1)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("name", ["CosineAnnealing", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 3, 40])
@pytest.mark.parametrize("total", [1, 2, 5, 30])
def test_every_step_trains(name: str, warmup: int, total: int) -> None:
    """Whatever the length: no step at rate 0, one at the peak if the warm-up ends, and then it only falls."""
    found = rates(total, name, warmup_steps=warmup)
    peak = max(warmup, 1)
    assert min(found) > 0
    assert found[:peak] == pytest.approx([step / peak for step in range(1, total + 1)][:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True) and (
        name == "constant" or all(x < 1 for x in found[peak:])
    )


def test_constant_steps_are_as_many_at_min_lr() -> None:
    found = rates(20, warmup_steps=2, constant_steps=4, min_lr=0.1)
    assert found[-4:] == pytest.approx([0.1] * 4) and found[-5] > 0.1
    assert rates(20, warmup_steps=2, min_lr=0.1)[-1] > 0.1  # without any, the rate would be there at step 21


@pytest.mark.parametrize(
    ("total", "settings", "says"),
    [
        (8, {}, "never reaches model.optim.lr: model.optim.sched.warmup_steps=10, and the run has 8 steps"),
        (1, {"warmup_steps": 2}, "the run has 1 step, the last at 50% of it"),
        (20, {"warmup_steps": 5, "constant_steps": 100, "min_lr": 1e-7}, "leaves model.optim.lr after one step"),
        (20, {"constant_steps": 5}, "the last 5 steps train nothing: model.optim.sched.min_lr is 0 there"),
        (20, {"max_steps": 12}, "the last 8 steps train nothing"),
        (20, {"max_steps": 12, "min_lr": 1e-7}, None),
        (20, {"max_steps": 40}, None),
        (20, {}, None),
        (1, {"warmup_steps": 0}, None),
        (20, {"name": "constant", "constant_steps": 100}, None),
    ],
)
def test_what_hardly_was_meant_is_said(total: int, settings: dict, says: str | None) -> None:
    sched = SchedConfig(**settings)
    found = RateSchedule.of(sched, total).warnings(sched)
    assert found == [] if says is None else any(says in text for text in found), found
