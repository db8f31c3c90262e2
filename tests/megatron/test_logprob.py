"""Log-probs from vocabulary-parallel logits equal those of a dense log_softmax, and so do their gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from torchrun import run_ranks

pytestmark = pytest.mark.distributed

CASES = (
    "padded vocabulary",
    "no padding",
    "a rank of padding alone",
    "one token",
    "extreme logits",
    "bf16 logits",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logprob")
    run_ranks(Path(__file__).with_name("ranks_logprob.py"), 2, folder)
    return folder


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_log_softmax(out: Path, tensor: int, case: str) -> None:
    for rank in range(2):
        ran = json.loads((out / f"{tensor}.{rank}.json").read_text())
        assert set(ran) == set(CASES)
        found = ran[case]
        assert found["logprobs"] < 1e-6 and not math.isnan(found["logprobs"])
        # The gradient comes back in the dtype of the logits.
        assert found["gradient"] < (5e-3 if case == "bf16 logits" else 1e-6)
        assert found["gradient where there is none"] == 0
        assert found["change of the logits"] == 0
