"""AutoBridge and this package's own mapping make the same weights of a Hugging Face folder, and the same folder of
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_models
import pytest
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

TP2, PP2 = {"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}
CASES: list[tuple[str, dict[str, Any]]] = [("llama", TP2), ("llama", PP2), ("qwen2", TP2), ("qwen2_tied", PP2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    models, out = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("out")
    for name in {name for name, _ in CASES}:
        hf_models.make(name, models / name)
    run_ranks(Path(__file__).with_name("ranks_conversion.py"), 2, models, out, json.dumps(CASES), timeout=400)
    return [[json.loads((out / f"{case}.{rank}.json").read_text()) for rank in range(2)] for case in range(len(CASES))]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name} {min(layout)[:2]}" for name, layout in CASES])
def test_autobridge_and_the_own_mapping_agree(found, case):
    for rank in found[case]:
        assert rank["imports_equal"] and rank["exports_equal"] and rank["round_trip"]
        assert rank["parameters"] > 10
