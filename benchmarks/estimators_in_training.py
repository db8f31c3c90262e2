"""What an estimator is worth to a policy that learns at the same time: the package's own preference world, one process.

    python benchmarks/estimators_in_training.py [--seeds 5] [--epochs 1 3] [--write docs/estimators.md]

Twelve annotators from .95 to .15, 500 labels each, one label a pair. Printed are the accuracy on noise-free pairs, the
mean distance of η from every annotator's realised accuracy when training ends, and the same after the closing fits on
the final margins: the exact sweep under a fixed prior, and the buffer's full fit. ``known`` has η fixed at the truth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from markdown_table import replace_block, table
from plain_reference import Settings, clean_accuracy, learning_rate, log_ratio, read_pairs
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_rpo.em import (
    AnnotatorReliability,
    BufferedReliability,
    EMSettings,
    MarginBuffer,
    Votes,
    bounded_loss,
    estimate,
    full_batch_em,
    robust_loss,
)
from nemo_rpo.losses import LossTerms

METHODS = ("DPO", "ema", "ema, sweep at epoch ends", "buffer", "known")
COLUMNS = ("clean accuracy", "η, running", "η, sweep", "η, full fit")


@dataclass
class Task:
    """A world in tensors: pairs of token ids, their labels, and what the annotators' labels were worth."""

    folder: Path
    tokenizer: AutoTokenizer
    chosen: Tensor
    rejected: Tensor
    votes: Votes
    realised: Tensor

    @classmethod
    def load(cls, folder: Path) -> Task:
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        chosen, rejected, names = read_pairs(folder / "train.jsonl", tokenizer)
        truth = json.loads((folder / "truth.json").read_text())["annotators"]
        ids = sorted(truth)
        votes = Votes.single(torch.tensor([ids.index(name) for name in names]))
        return cls(
            folder, tokenizer, chosen, rejected, votes, torch.tensor([truth[k]["realised_accuracy"] for k in ids])
        )

    def model(self) -> AutoModelForCausalLM:
        return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)


def reliability_of(task: Task, method: str) -> AnnotatorReliability:
    annotators = len(task.realised)
    if method == "buffer":
        return BufferedReliability(
            annotators, EMSettings(estimator="buffer"), MarginBuffer(len(task.chosen)), task.votes
        )
    reliability = AnnotatorReliability(annotators, EMSettings())
    if method == "known":
        reliability.replace(task.realised)
    return reliability


def train(task: Task, method: str, settings: Settings, seed: int) -> list[float]:
    """One run; the numbers of :data:`COLUMNS`."""
    model, reliability = task.model(), reliability_of(task, method)
    with torch.no_grad():
        reference = log_ratio(model, task.chosen, task.rejected)
    optimizer = torch.optim.AdamW(model.parameters(), betas=settings.betas, weight_decay=settings.weight_decay)
    order = torch.Generator().manual_seed(seed)
    steps = len(task.chosen) // settings.batch_size

    def margins(rows: Tensor | slice) -> Tensor:
        return settings.beta * (log_ratio(model, task.chosen[rows], task.rejected[rows]) - reference[rows])

    for step in range(steps * settings.epochs):
        if step % steps == 0:
            shuffled = torch.randperm(len(task.chosen), generator=order)
        rows = shuffled[(step % steps) * settings.batch_size :][: settings.batch_size]
        delta, votes = margins(rows), Votes(task.votes.annotator[rows], task.votes.sign[rows])
        w = torch.ones(len(rows)) if method == "DPO" else reliability.posterior(delta, votes)
        terms = LossTerms(-F.logsigmoid(delta), -F.logsigmoid(-delta), delta, exact=True)
        if method == "buffer":  # its own objective; the others have the paper's
            loss = bounded_loss(terms, *reliability.bounded(votes), w).mean()
        else:
            loss = robust_loss(terms, w).mean()
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps * settings.epochs, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        if method not in ("DPO", "known"):
            valid = torch.ones(len(rows), dtype=torch.bool)
            reliability.accumulate(w, votes, valid)
            reliability.observe(rows, delta.detach(), valid)
            reliability.exchange(lambda own: own)
            reliability.commit()
        if method == "ema, sweep at epoch ends" and (step + 1) % steps == 0:
            with torch.no_grad():
                reliability.replace(full_batch_em(margins(slice(None)), task.votes, reliability.eta, EMSettings()).eta)

    with torch.no_grad():
        final = margins(slice(None))
    swept = full_batch_em(final, task.votes, reliability.eta, EMSettings()).eta
    fitted = estimate(final, task.votes, reliability.eta, EMSettings(estimator="buffer")).eta
    off = [(eta - task.realised).abs().mean().item() for eta in (reliability.eta, swept, fitted)]
    return [clean_accuracy(model, task.folder, task.tokenizer), *off]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[tuple[int, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            world = Path(folder) / str(seed)
            command = [sys.executable, "-m", "nemo_rpo.world", "--out", str(world), "--seed", str(seed)]
            subprocess.run([*command, "--labels", "500"], check=True, stdout=subprocess.DEVNULL)
            task = Task.load(world)
            for epochs in arguments.epochs:
                for method in METHODS:
                    found = train(task, method, Settings(epochs=epochs), seed)
                    results.setdefault((epochs, method), []).append(found)
                    numbers = "  ".join(f"{name} {value:.3f}" for name, value in zip(COLUMNS, found, strict=True))
                    print(f"seed {seed}  epochs {epochs}  {method:24s}  {numbers}", flush=True)
    text = "\n\n".join(summary(results, epochs) for epochs in arguments.epochs)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "in training", text)


def summary(results: dict[tuple[int, str], list[list[float]]], epochs: int) -> str:
    rows = {}
    for method in METHODS:
        accuracy, *off = zip(*results[epochs, method], strict=True)
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        rows[method] = [f"{statistics.mean(accuracy):.3f} ± {spread:.3f}", *(f"{statistics.mean(x):.3f}" for x in off)]
    return table(f"{epochs} epoch{'s' * (epochs > 1)}", COLUMNS, rows)


if __name__ == "__main__":
    main()
