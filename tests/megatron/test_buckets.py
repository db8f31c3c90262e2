"""A gradient buffer of many buckets, each padded at its end: what is saved of the optimizer is what was there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]


# In bf16 a weight has 8 bits: the other optimizer's order of sums may turn the last one.
OTHERWISE = {"32": 1e-6, "bf16": 1e-2}


def test_a_run_with_padded_buckets_is_resumed_to_the_bit(world: Path, tmp_path: Path) -> None:
    """Also one all of whose steps were skipped, and with the other optimizer: the file has no word of buckets."""
    script = Path(__file__).with_name("ranks_buckets.py")
    run_ranks(script, 2, world, tmp_path, "model.optim.overlap_grad_sync=true")
    for rank in range(2):
        for precision, found in json.loads((tmp_path / f"found.{rank}.json").read_text()).items():
            assert sum(padding > 0 for padding in found["padding"]) >= 2  # else there is nothing to get wrong
            assert found["resumed"] == found["resumed before any step"] == found["the other one resumed"] == 0.0
            assert found["resumed with the other optimizer"] < OTHERWISE[precision]
