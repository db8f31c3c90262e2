"""The engine and every host train by one definition of the pair step: of the tie rule, the SFT mix and the surrogate.

What cannot be imported in this environment is skipped here and imported in that of its own tests; its source is read in
all of them.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import nemo_rpo
from nemo_rpo.config import loss as of_the_configuration
from nemo_rpo.em import pair_step
from nemo_rpo.errors import RPOError

PACKAGE = Path(nemo_rpo.__file__).parent
TRAINERS = [
    "nemo_rpo.megatron.model",
    "nemo_rpo.integrations.megatron_bridge.step",
    "nemo_rpo.integrations.nemo_aligner.model",
    "nemo_rpo.integrations.nemo_rl.loss",
    "nemo_rpo.integrations.trl.trainer",
]
SOURCES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
}
STEP = "em/pair_step.py"


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_calls_the_packages_step(name):
    try:
        module = importlib.import_module(name)
    except (ImportError, RPOError) as exc:
        pytest.skip(f"{name} needs what this environment has not: {exc}")
    assert module.pair_step is of_the_configuration.pair_step
    assert of_the_configuration.em.PairStep is pair_step.PairStep
    assert not hasattr(module, "robust_loss")


@pytest.mark.parametrize("name", TRAINERS)
def test_its_source_calls_it(name):
    path = "/".join(name.split(".")[1:]) + ".py"
    assert "pair_step" in calls(SOURCES[path])


@pytest.mark.parametrize("function", ["robust_loss", "surrogate", "statistic", "has_evidence"])
def test_only_the_step_calls_what_it_is_made_of(function):
    """Outside the losses, which define reductions, and the label model, whose statistic is one of dependence."""
    others = ("losses/", "em/label_model/", "em/groups/")
    callers = {path for path, tree in SOURCES.items() if function in calls(tree) and not path.startswith(others)}
    assert callers == {STEP}


def test_no_trainer_has_a_posterior_of_its_own_without_the_em():
    rooms = ("megatron/", "integrations/", "training/")
    assert not [path for path, tree in SOURCES.items() if path.startswith(rooms) and "share" in calls(tree)]


def test_only_the_step_knows_what_becomes_of_a_tie():
    """Others may ask whether a loss takes ties to keep them in the data."""
    for path, tree in SOURCES.items():
        if path == STEP or path.startswith("losses/"):
            continue
        kept = {id(keyword.value) for keyword in of_kind(tree, ast.keyword) if keyword.arg == "keep_ties"}
        read = [node for node in of_kind(tree, ast.Attribute) if node.attr == "takes_ties" and id(node) not in kept]
        assert not read, path
    assert any(node.attr == "takes_ties" for node in of_kind(SOURCES[STEP], ast.Attribute))


def test_only_the_configuration_says_which_terms_a_step_has():
    names = ("preference_loss_weight", "sft_average_log_probs")
    readers = {
        path
        for path, tree in SOURCES.items()
        for node in of_kind(tree, ast.Attribute)
        if node.attr in names and isinstance(node.ctx, ast.Load)
    }
    assert readers == {"config/loss.py"}


def calls(tree: ast.Module) -> set[str]:
    """Names of the functions and methods that are called."""
    called = [node.func for node in of_kind(tree, ast.Call)]
    return {of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "") for of in called}


def of_kind(tree: ast.Module, kind: type) -> list:
    return [node for node in ast.walk(tree) if isinstance(node, kind)]
