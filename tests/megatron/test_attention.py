"""The engine's attention without Transformer Engine equals Megatron-Core's own, forward and backward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

CASES = ("multi-head", "grouped", "multi-query", "scaled", "one position", "wide heads")
PACKS = ("sequences", "pairs with one prompt", "three responses", "sequences and pairs")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    file = tmp_path_factory.mktemp("attention") / "found.json"
    run_ranks(Path(__file__).with_name("ranks_attention.py"), 1, file)
    return json.loads(file.read_text())


@pytest.mark.parametrize("case", [*CASES, *PACKS])
def test_equals_megatrons_attention(found: dict[str, dict[str, float]], case: str) -> None:
    assert set(found) == {*CASES, *PACKS, "dropout"}
    assert set(found[case]) == {"context", "query gradient", "key gradient", "value gradient"}
    assert all(difference < 1e-5 for difference in found[case].values()), found[case]


def test_dropout_is_for_training_alone(found: dict[str, dict[str, float]]) -> None:
    assert found["dropout"]["training"] > 0.1
    assert found["dropout"]["evaluation"] == 0
