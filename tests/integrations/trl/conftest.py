"""These tests run where TRL is installed; CI has an environment of its own for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if find_spec("trl") else ["*.py"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny language model."""
    from .world import make_model

    return make_model(Path(tmp_path_factory.mktemp("model")))
