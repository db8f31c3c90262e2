"""A process that builds one model after the other keeps none of them: neither weights nor process groups add up."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import tiny_world
from torchrun import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]


def test_models_and_their_groups_go(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    tiny_world.make(tmp_path / "world")
    run_ranks(Path(__file__).with_name("ranks_one_model_after_another.py"), 2, tmp_path / "world", tmp_path)
