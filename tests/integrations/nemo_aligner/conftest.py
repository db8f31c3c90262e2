"""These tests run where NeMo-Aligner is installed; CI has an environment of its own for it.

``test_engine_side.py`` alone is for the project's main environment: it holds the engine to the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from skipped_modules import skipped

HERE = Path(__file__).parent
INSTALLED = find_spec("nemo_aligner") is not None
OF_MAIN_ENVIRONMENT = {"test_engine_side.py"}

if INSTALLED:
    from . import shim

    shim.install()  # before a test module imports NeMo


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    of_main = module_path.name in OF_MAIN_ENVIRONMENT
    here, there = ("NeMo-Aligner's", "the project's main") if INSTALLED else ("the main", "NeMo-Aligner's own")
    reason = f"this is {here} environment; CI runs these tests in {there} one"
    return skipped(module_path, parent, reason) if of_main == INSTALLED else None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's folder, with the ``tiny.nemo`` that NeMo's own class has saved."""
    from torchrun import run_ranks

    from . import world

    made = world.make(tmp_path_factory.mktemp("world"))
    run_ranks(HERE / "ranks_nemo.py", 1, made, timeout=600)
    return made


@pytest.fixture(scope="session")
def train(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """``train(ranks, *runs, stock=False)``: what :mod:`ranks_train` leaves of each run, one after the other on the same
    ranks; a run is overrides of the recipe.
    """
    from torchrun import run_ranks

    def run_recipes(ranks: int, *runs: dict[str, Any], stock: bool = False) -> list[dict[str, Any]]:
        out = tmp_path_factory.mktemp("run") / "log.json"
        run_ranks(HERE / "ranks_train.py", ranks, folder, out, json.dumps({"runs": runs, "stock": stock}), timeout=600)
        return json.loads(out.read_text(encoding="utf-8"))

    return run_recipes
