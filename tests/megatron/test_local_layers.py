"""What the local layer spec does in fewer passes than torch or Megatron-Core equals theirs, under random upstream
gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from nemo_rpo.megatron.cpu.norm import RMSNorm
from nemo_rpo.megatron.cpu.rotary import Turn, rotate
from nemo_rpo.megatron.cpu.swiglu import _ROWS, _SwiGLU

pytestmark = pytest.mark.every_release

S, B, HEADS, HEAD, EPS = 7, 2, 3, 8, 1e-5


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    found = function(*leaves)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found.dtype)
    return [found, *torch.autograd.grad(found, leaves, upstream)]


def random(*shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_equal(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.detach().abs().max().item())


def written_out(gate_and_up: Tensor) -> Tensor:
    gate, up = gate_and_up.chunk(2, -1)
    return F.silu(gate) * up


@pytest.mark.parametrize("positions", [S, 2 * _ROWS + 1], ids=["few", "some blocks"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_swiglu(dtype: torch.dtype, tolerance: float, positions: int) -> None:
    x = random(positions, B, 2 * HEAD).to(dtype)
    for strided in (x, x.transpose(0, 1)):
        assert_equal(with_gradients(_SwiGLU.apply, strided), with_gradients(written_out, strided), tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("of_heads", [False, True], ids=["of tokens", "of the heads of a split"])
def test_rms_norm(dtype: torch.dtype, tolerance: float, of_heads: bool) -> None:
    norm = RMSNorm(HEAD, eps=EPS, dtype=dtype)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x[..., HEAD:] if of_heads else x,))

    def torchs(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x[..., HEAD:] if of_heads else x, (HEAD,), weight, EPS)

    inputs = random(S, B, HEADS, 2 * HEAD if of_heads else HEAD).to(dtype), random(HEAD).to(dtype)
    assert_equal(with_gradients(ours, *inputs), with_gradients(torchs, *inputs), tolerance)


@pytest.mark.parametrize("rotated", [HEAD, HEAD // 2], ids=["whole heads", "half of a head"])
def test_rotation(rotated: int) -> None:
    angles = random(S, 1, 1, rotated // 2).repeat(1, 1, 1, 2)

    def ours(x: Tensor) -> Tensor:
        return rotate(x[..., :HEAD], Turn.by(angles, HEAD))

    def megatrons(x: Tensor) -> Tensor:
        return _apply_rotary_pos_emb_bshd(x[..., :HEAD], angles)

    x = random(S, B, HEADS, 3 * HEAD)
    assert_equal(with_gradients(ours, x), with_gradients(megatrons, x))
