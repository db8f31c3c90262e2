"""These tests run where nemo-toolkit 2.7 or newer is installed; CI has an environment of its own for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from skipped_modules import skipped

from nemo_rpo import nemo_toolkit

REASON = "nemo-toolkit 2.7 or newer is not in use here; CI runs these tests in an environment of its own"


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return skipped(module_path, parent, REASON) if nemo_toolkit.version() is None else None
