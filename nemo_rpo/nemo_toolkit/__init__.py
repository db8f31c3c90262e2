"""nemo-toolkit 2.7 … 3.x beside the engine: its ``hydra_runner``, ``exp_manager`` and tokenizers in place of our own.

A leaf: it imports nothing of ours but errors, so that the settings, the data and the training may each ask for their
piece. NeMo takes seconds to import; only the piece that is used does it. What is handed over: docs/nemo_toolkit.md.
"""

from __future__ import annotations

import importlib.metadata
import os

SWITCH = "NEMO_RPO_TOOLKIT"  # "own": as if nemo-toolkit were not installed; child processes inherit it
_OLDEST = (2, 7)


def version() -> str | None:
    """The version of nemo-toolkit, if its pieces are used. None where the package's own are: nemo-toolkit is absent or
    too old (as beside NeMo-Aligner), or the environment says ``NEMO_RPO_TOOLKIT=own``.
    """
    if os.environ.get(SWITCH) == "own":
        return None
    try:
        found = importlib.metadata.version("nemo_toolkit")
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if tuple(map(int, found.split(".")[:2])) >= _OLDEST else None
