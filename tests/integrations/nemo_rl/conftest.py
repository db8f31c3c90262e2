"""Stand-ins for NeMo-RL, which is on no package index; where the real one is installed these tests leave it alone."""

from __future__ import annotations

import pytest

from .upstream import install


@pytest.fixture(autouse=True)
def nemo_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
