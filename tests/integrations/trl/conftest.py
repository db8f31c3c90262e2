"""These tests run where TRL is installed; CI has an environment of its own for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from skipped_modules import skipped

REASON = "TRL is not installed; CI runs these tests in an environment of its own"


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return skipped(module_path, parent, REASON) if find_spec("trl") is None else None


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny language model."""
    from .world import make_model

    return make_model(tmp_path_factory.mktemp("model"))
