"""Dropout is for training: what is frozen, or measures, gives a batch the same log-probs each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

POLICIES = ("swapped", "resident", "cached", "previous iterate")


@pytest.fixture(scope="module")
def found(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dropout")
    run_ranks(Path(__file__).with_name("ranks_dropout.py"), 1, world, folder, timeout=500)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_batch_has_the_same_log_probs(found: dict[str, Any], policy: str) -> None:
    for what in ("frozen", "policy", "validation"):
        once, again = found[policy][what]
        assert once == again, what


def test_wherever_the_reference_is_kept(found: dict[str, Any]) -> None:
    swapped, resident, cached = (np.array(found[policy]["frozen"][0]) for policy in POLICIES[:3])
    assert np.array_equal(swapped, resident) and (swapped < -1).all()
    np.testing.assert_allclose(cached, swapped, rtol=0, atol=2e-5)  # in other batches: another order of sums


@pytest.mark.parametrize("policy", POLICIES)
def test_training_goes_on_with_dropout(found: dict[str, Any], policy: str) -> None:
    assert found[policy]["training mode after measuring"] and found[policy]["training mode after a failure"]
    assert found[policy]["largest margin in the first step"] > 1e-3  # without dropout 0
