"""The divergence of a frozen policy without logits equals the dense one, and so do its gradients under any upstream
gradient.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import torch
from test_linear_logprob import CASES
from torchrun import run_ranks

from nemo_rpo.megatron.logprobs.divergence import linear_kl

SAME = "the same policy"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear_kl")
    run_ranks(Path(__file__).with_name("ranks_linear_kl.py"), 2, folder)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("case", [*CASES, SAME])
def test_equals_the_dense_divergence(out: Path, tensor: int, case: str) -> None:
    # bf16 logits have 8 bits, and so has each gradient; a divergence is a difference of them.
    allowed = 5e-2 if case == "bf16" else 1e-5
    for rank in range(2):
        ran = json.loads((out / f"{tensor}.{rank}.json").read_text())
        assert set(ran) == {*CASES, SAME}
        assert len(ran[case]) == 2 + (tensor == 2)
        for way, found in ran[case].items():
            assert found.pop("gradient of padding") == 0, way
            assert (found.pop("largest kl") > 0) == (case not in (SAME, "no response token")), way
            assert all(value <= allowed for value in found.values()), (way, found)


def test_nothing_flows_into_the_frozen_policy() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    frozen = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    linear_kl(hidden, weight, *frozen, vocab_size=9).sum().backward()
    assert hidden.grad.any() and weight.grad.any()
    assert [tensor.grad for tensor in frozen] == [None, None]
