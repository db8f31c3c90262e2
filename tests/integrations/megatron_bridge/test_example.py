"""examples/megatron_bridge/train_rpo.py builds Bridge's configuration of the file beside it, for a user's own data."""

from __future__ import annotations

import json
from pathlib import Path

import hf_models
import pytest
from torchrun import run_ranks

pytestmark = pytest.mark.distributed


def test_the_example_builds_what_its_file_says(tmp_path):
    hf_models.make("llama", tmp_path / "model")
    run_ranks(Path(__file__).with_name("ranks_example.py"), 1, tmp_path, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["data"] == {"train": "train.jsonl", "validation": "validation.jsonl"}
    assert found["annotator_key"] == "annotator" and found["save_interval"] == 50
    assert found["signal"] == [True, 15]  # what the job script sends
    assert found["manager"].endswith("RPOCheckpointManager")
    unknown, missing, misspelt = found["refused"]
    assert unknown.startswith("unknown setting 'hf_pth'; known are rpo, dpo, hf_path")
    assert missing == "the setting 'data_prefix' is missing"
    assert "alpa" in misspelt and "alpha" in misspelt
