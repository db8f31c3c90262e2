"""Memory and time of a full EM, and of the buffer's full fit, on a million annotators.

    python benchmarks/em_scale.py [--annotators 1000000] [--pairs 10000000] [--device cpu]

One label a pair, log-normal activity, margins N(0, 2²). Data are stored as a run stores them: margins float32,
annotators int32, signs int8 (9 bytes a pair).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from nemo_rpo.em import EMSettings, Votes, estimate, full_batch_em, standard_errors

T = TypeVar("T")


def draw(annotators: int, pairs: int, device: str) -> tuple[Tensor, Votes, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    log_activity = 1.3 * torch.randn(annotators, generator=generator, device=device)
    share = log_activity.double().exp().cumsum(0)
    share /= share[-1].item()
    ids = torch.searchsorted(share, torch.rand(pairs, generator=generator, device=device).double())
    annotator = ids.clamp_(max=annotators - 1).int()
    eta = 0.5 + 0.5 * torch.rand(annotators, generator=generator, device=device)
    delta = 2 * torch.randn(pairs, generator=generator, device=device)
    better = torch.rand(pairs, generator=generator, device=device) < torch.sigmoid(delta)
    right = torch.rand(pairs, generator=generator, device=device) < eta[annotator]
    sign = torch.where(right == better, 1, -1).to(torch.int8)
    return delta, Votes(annotator.unsqueeze(-1), sign.unsqueeze(-1)), eta


def peak_memory(device: str) -> float:
    """Gigabytes: of the process on a CPU, allocated on a GPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated() / 2**30


def timed(name: str, work: Callable[[], T], device: str) -> T:
    # Processor time: a shared machine's other work does not count. With one thread it is what an idle machine takes.
    clock = time.process_time if device == "cpu" else time.perf_counter
    before, start = peak_memory(device), clock()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds, after = clock() - start, peak_memory(device)
    print(f"{name:16s} {seconds:8.1f} s   peak {after:.2f} GB, {max(0.0, after - before):.2f} GB of it new", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, annotators = arguments.device, arguments.annotators
    print(f"{arguments.pairs:,} pairs, {annotators:,} annotators on {device}, {torch.get_num_threads()} threads")
    delta, votes, truth = timed("drawing", lambda: draw(annotators, arguments.pairs, device), device)
    start = torch.full((annotators,), 0.9, dtype=torch.float64, device=device)
    settings = EMSettings(estimator="buffer", sweep_tolerance=1e-4)

    swept = timed("full EM", lambda: full_batch_em(delta, votes, start, settings), device)
    print(f"{'':16s} {swept.iterations} iterations, converged: {swept.converged}")
    fitted = timed("buffer's fit", lambda: estimate(delta, votes, start, settings), device)
    a, b = fitted.prior
    print(f"{'':16s} prior Beta({a:.2f}, {b:.2f}), temperature {fitted.temperature.value:.3f}")
    timed("standard errors", lambda: standard_errors(delta, votes, fitted.eta, settings), device)
    for name, eta in (("full EM", swept.eta), ("buffer's fit", fitted.eta)):
        print(f"RMSE of η, {name:14s} {(eta - truth).square().mean().sqrt().item():.3f}")


if __name__ == "__main__":
    main()
