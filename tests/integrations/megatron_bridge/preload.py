"""What the forks of :mod:`fork_server` find imported beside Megatron-Bridge, which takes half a minute of it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)

sys.path.insert(0, HERE)
import bridge_cpu  # noqa: E402

sys.path.remove(HERE)
bridge_cpu.install()

import megatron.bridge.training.callbacks  # noqa: E402, F401

import nemo_rpo.integrations.megatron_bridge  # noqa: E402, F401
