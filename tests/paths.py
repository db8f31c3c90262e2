"""Where the tests find the repository and the public data sets kept outside it."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED_DATA = Path(os.environ.get("NEMO_RPO_DATA") or ROOT.parent / "shared" / "data")
