"""What log-probs without logits cost beside log-probs from logits: one head of 128k words, forward and backward.

    python -m benchmarks.head [--tokens 4096 --hidden 256 --vocab 128256]

Each way runs in a process of its own, in turn; times are of the processor on one thread, memory is the most that the
process holds beyond what it held with the weights and hidden states in place.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.markdown_table import table
from benchmarks.process_tree import run

WAYS = {"all logits": "logits", "a block of the vocabulary at a time": "blocks"}


def step(way: str, tokens: int, hidden_size: int, vocab: int) -> dict[str, float]:
    """Times and memory of the second of two steps, and of both."""
    from nemo_rpo.megatron.logprobs.chunked import linear_logprobs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    weight = (torch.randn(vocab, hidden_size) / hidden_size**0.5).requires_grad_()
    targets, upstream = torch.randint(vocab, (tokens,)), torch.randn(tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        hidden.grad = weight.grad = None
        began = time.process_time()
        if way == "logits":
            logits = hidden @ weight.t()
            logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
            del logits
        else:
            logprobs = linear_logprobs(hidden, weight, targets, vocab)
        logprobs.backward(upstream)
        seconds = time.process_time() - began
    return {"cpu": seconds, "mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=tuple(WAYS.values()), help=argparse.SUPPRESS)  # a process of a round
    args = parser.parse_args()
    if args.way:
        print(json.dumps(step(args.way, args.tokens, args.hidden, args.vocab)))
        return
    size = [f"--{name}={getattr(args, name)}" for name in ("tokens", "hidden", "vocab")]
    command = [sys.executable, "-m", f"benchmarks.{Path(__file__).stem}", *size]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, way in WAYS.items():
            found[name].append(run([*command, "--way", way], threads=1).answer)
    first = next(iter(found.values()))
    rows = {}
    for name, rounds in found.items():
        seconds, memory = (statistics.median(ran[key] for ran in rounds) for key in ("cpu", "mebibytes"))
        ratio = statistics.median(ours["cpu"] / theirs["cpu"] for ours, theirs in zip(rounds, first, strict=True))
        share = memory / statistics.median(ran["mebibytes"] for ran in first)
        rows[name] = [f"{seconds:.1f} s", f"{ratio:.2f}×", f"{memory:,.0f} MiB", f"{share:.2f}×"]
    corner = f"{args.tokens:,} tokens, h = {args.hidden}, V = {args.vocab:,}"
    print(table(corner, ["forward and backward", "of the first", "memory", "of the first"], rows))


if __name__ == "__main__":
    main()
