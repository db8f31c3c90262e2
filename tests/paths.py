"""Where the tests find the repository and the public data sets kept outside it, and what their processes see of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED_DATA = Path(os.environ.get("NEMO_RPO_DATA") or ROOT.parent / "shared" / "data")


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a process that a test starts: ``nemo_rpo`` and this folder are importable, whether installed or not; one
    thread; what hangs says where when it is aborted. ``env`` comes over all that.
    """
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    ours = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return os.environ | ours | dict(env or {})
