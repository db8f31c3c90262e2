"""These tests run where Megatron-Bridge is installed; CI has it in the environment of the newest Megatron-Core."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
from paths import TESTS
from skipped_modules import skipped

sys.path.append(str(TESTS / "megatron"))  # tiny_world, hf_models: the engine's worlds are also Bridge's


def _installed() -> bool:
    try:
        return find_spec("megatron.bridge") is not None
    except ModuleNotFoundError:
        return False


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    reason = "Megatron-Bridge is not installed; CI runs these tests with the newest Megatron-Core"
    return None if _installed() else skipped(module_path, parent, reason)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A :mod:`tiny_world` with a token more: Bridge does not pad the vocabulary of a model that it takes over."""
    import tiny_world

    words = (*tiny_world.WORDS, "spare")
    with mock.patch.multiple(tiny_world, WORDS=words, CONFIG=tiny_world.CONFIG | {"vocab_size": len(words)}):
        return tiny_world.make(tmp_path_factory.mktemp("world"))
