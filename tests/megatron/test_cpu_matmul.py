"""Products through oneDNN are the products, for the layers' shapes; what autograd follows is left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nemo_rpo.megatron.cpu.matmul import through_onednn

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch has no oneDNN",
)
ONEDNN = "mkldnn::_linear_pointwise"
product = through_onednn(torch.matmul)


def through(left: Tensor, right: Tensor, **options: Tensor) -> tuple[Tensor, bool]:
    """The product, and whether oneDNN made it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = product(left, right, **options)
    return found, any(event.key == ONEDNN for event in profile.key_averages())


@pytest.mark.parametrize("rows", [(1031,), (517, 1), (257, 4)])
@pytest.mark.parametrize("k, n", [(64, 96), (688, 256), (100, 33)])
@pytest.mark.parametrize("transposed", [True, False])
def test_it_is_the_product(rows: tuple[int, ...], k: int, n: int, transposed: bool) -> None:
    torch.manual_seed(0)
    left = torch.randn(*rows, k)
    right = torch.randn(n, k).t() if transposed else torch.randn(k, n)
    found, onednn = through(left, right)
    assert onednn
    exact, size = left.double() @ right.double(), left.abs() @ right.abs()
    assert ((found - exact).abs() / size).max() <= 1e-6  # fp32; products in TF32 or bf16 are off by 1e-4 and more
    assert found.shape == exact.shape and found.is_contiguous()


def test_what_is_left_to_torch() -> None:
    left, right = torch.randn(1024, 64), torch.randn(64, 96)
    weight = torch.nn.Parameter(right)
    found, onednn = through(left, weight)
    assert not onednn and found.requires_grad
    with torch.no_grad():
        assert through(left, weight)[1]
    for case in (
        (left.t(), torch.randn(1024, 96)),  # a weight's gradient
        (left.bfloat16(), right.bfloat16()),
        (left[:4], right),
        (left.view(64, 16, 64), torch.randn(64, 64, 96)),
    ):
        found, onednn = through(*case)
        assert not onednn and torch.equal(found, torch.matmul(*case))
    out = torch.empty(1024, 96)
    found, onednn = through(left, right, out=out)
    assert found is out and not onednn
