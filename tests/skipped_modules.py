"""Test modules that belong to another environment: ``from skipped_modules import skipped``."""

from __future__ import annotations

from pathlib import Path

import pytest


class _Elsewhere(pytest.Module):
    """A test module that is not imported, since its imports would fail."""

    reason: str

    def collect(self) -> list[pytest.Item]:
        pytest.skip(self.reason, allow_module_level=True)


def skipped(module_path: Path, parent: pytest.Collector, reason: str) -> pytest.Module:
    """What ``pytest_pycollect_makemodule`` answers for a module that is skipped with ``reason``."""
    module = _Elsewhere.from_parent(parent, path=module_path)
    module.reason = reason
    return module
