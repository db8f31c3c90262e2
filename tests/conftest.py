"""Shared by all tests. Its place puts this folder on the import path: tests say ``from torchrun import run_ranks``."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from paths import SHARED_DATA

try:
    from hypothesis import settings
except ImportError:  # not in the environments of every host
    pass
else:
    # The same examples on every machine, however busy: a failure is one of the code, and can be repeated.
    settings.register_profile("nemo_rpo", deadline=None, derandomize=True)
    settings.load_profile("nemo_rpo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run ranks, which are the long ones, come first: the last worker then has little left to do alone."""
    ranks = {item.path for item in items if item.get_closest_marker("distributed")}
    items.sort(key=lambda item: item.path not in ranks)


# A shell's background job ignores Ctrl-C, and so would the runs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets: ``$NEMO_RPO_DATA``, or ``../shared/data`` where it is not set."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} does not exist; set NEMO_RPO_DATA to the folder of shared data sets")
    return SHARED_DATA
