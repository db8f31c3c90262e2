"""These tests run where nemo-toolkit 2.7 or newer is installed; CI has an environment of its own for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_rpo.integrations import nemo_toolkit


class WithoutToolkit(pytest.Module):
    """A test module that is not imported, since its imports would fail."""

    def collect(self) -> list[pytest.Item]:
        reason = "nemo-toolkit is not installed; CI runs these tests in an environment of its own"
        pytest.skip(reason, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return WithoutToolkit.from_parent(parent, path=module_path) if nemo_toolkit.version() is None else None
