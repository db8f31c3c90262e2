"""Log-probs without logits equal dense ones, and so do their gradients under any upstream gradient."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import torch
from torchrun import run_ranks

from nemo_rpo.megatron.batch.responses import ResponseTokens
from nemo_rpo.megatron.logprobs.chunked import linear_logprobs

pytestmark = pytest.mark.every_release

CASES = (
    "padded vocabulary",
    "no padding",
    "a rank of padding alone",
    "one block",
    "a word at a time",
    "one sequence",
    "extreme logits",
    "bf16",
    "no response token",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear_logprob")
    run_ranks(Path(__file__).with_name("ranks_linear_logprob.py"), 2, folder)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_log_softmax(out: Path, tensor: int, case: str) -> None:
    # bf16 logits have 8 bits, and so has each gradient.
    allowed = 2e-2 if case == "bf16" else 1e-5
    for rank in range(2):
        ran = json.loads((out / f"{tensor}.{rank}.json").read_text())
        assert set(ran) == set(CASES)
        assert len(ran[case]) == 4 + (tensor == 2)
        for way, found in ran[case].items():
            assert found.pop("gradient of padding") == 0, way
            assert all(value <= allowed for value in found.values()), (way, found)


def test_weight_or_hidden_may_want_no_gradient() -> None:
    hidden, weight, targets = torch.randn(5, 4), torch.randn(9, 4), torch.arange(5)
    linear_logprobs(hidden.requires_grad_(), weight, targets, 9).sum().backward()
    wanted = hidden.grad
    linear_logprobs(hidden.detach(), weight.requires_grad_(), targets, 9).sum().backward()
    hidden.grad = weight.grad = None
    torch.log_softmax(hidden @ weight.t(), -1)[range(5), targets].sum().backward()
    torch.testing.assert_close(wanted, hidden.grad)


def test_never_holds_all_logits() -> None:
    """64 MiB of logits, forward and backward, in less than a quarter of it (its own process: peaks only rise)."""
    body = """
    import resource, sys, torch
    from nemo_rpo.megatron.logprobs.chunked import linear_logprobs
    def step(n):
        hidden, weight = (torch.randn(rows, 8, requires_grad=True) for rows in (n, 65536))
        linear_logprobs(hidden, weight, torch.arange(n), 65536, block_elements=1 << 18).sum().backward()
    step(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(256)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(body)], capture_output=True, text=True, check=True)
    kibibytes = int(ran.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 16 * 1024


def test_responses_of_labels() -> None:
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, 7, 8], [-100, -100, -100, -100]])
    found = ResponseTokens.of_labels(labels)
    assert found.token.tolist() == [5, 6, 7, 8] and found.lengths.tolist() == [2, 2, 0]
    position, row = found.index // 3, found.index % 3  # of a hidden state [S, b]
    assert position.tolist() == [0, 1, 1, 2] and row.tolist() == [0, 0, 1, 1]
    assert found.sums(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [3.0, 7.0, 0.0]
    assert (found.begin // 3).tolist()[:2] == [0, 1] and (found.end // 3).tolist()[:2] == [2, 3]
    assert (found.begin % 3).tolist() == (found.end % 3).tolist() == [0, 1, 2]


def test_sums_do_not_lose_digits_to_length() -> None:
    """A hundred thousand tokens of one response; added one after the other in fp32 they would be off by whole nats."""
    logprobs = torch.full((100_000,), -0.1)
    lengths = torch.tensor([100_000])
    found = ResponseTokens(*[torch.zeros(0)] * 2, lengths, lengths.unsqueeze(1), *[torch.zeros(0)] * 2).sums(logprobs)
    assert found.item() == pytest.approx(-float(torch.tensor(0.1)) * 100_000, abs=1e-3)
