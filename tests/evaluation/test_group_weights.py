"""Whose taste a reward model with groups is judged by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.group_weights import weights_for
from nemo_rpo.training.outputs.results import write_annotators
from nemo_rpo.training.outputs.summary import AnnotatorRow


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A run whose annotators ann and bob have weights on two groups."""
    weights = {"ann": (0.75, 0.25), "bob": (0.125, 0.875)}
    write_annotators(tmp_path, [AnnotatorRow(name, 9, 0.9, 0.9, 0.1, 0.9, weights=w) for name, w in weights.items()])
    return Target(tmp_path / "hf", RunConfig())


def test_the_runs_weights_and_their_mean_for_whoever_it_does_not_know(target: Target) -> None:
    found = weights_for(target, 2, ["bob", "zoe", "ann"], None)
    assert found.tolist() == [[0.125, 0.875], [0.4375, 0.5625], [0.75, 0.25]]
    checkpoint = Target(target.weights.parent / "checkpoints/step=00000004", target.cfg)
    assert torch.equal(weights_for(checkpoint, 2, ["bob", "zoe", "ann"], None), found)


def test_a_named_group_judges_alone(target: Target) -> None:
    assert weights_for(target, 2, ["ann", "zoe"], 2).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("groups", "group", "message"),
    [
        (2, 3, r"--group=3, but .*hf has groups 1 to 2"),
        (2, 0, r"--group=0, but .*hf has groups 1 to 2"),
        (1, 1, r"--group=1, but .*hf has one truth for all"),
        (3, None, r"annotators.csv has no weights of 3 groups: name a group with --group"),
    ],
)
def test_what_cannot_be_is_named(target: Target, groups: int, group: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights_for(target, groups, ["ann"], group)


def test_a_model_outside_a_run_needs_a_group(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name a group with --group=1 to 2"):
        weights_for(Target(tmp_path / "else/where/hf", RunConfig()), 2, ["ann"], None)
