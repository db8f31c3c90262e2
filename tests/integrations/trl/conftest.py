"""These tests run where TRL is installed; CI has an environment of its own for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


class WithoutTRL(pytest.Module):
    """A test module that is not imported, since its imports would fail."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("TRL is not installed; CI runs these tests in an environment of its own", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return WithoutTRL.from_parent(parent, path=module_path) if find_spec("trl") is None else None


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny language model."""
    from .world import make_model

    return make_model(tmp_path_factory.mktemp("model"))
