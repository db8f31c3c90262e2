"""DPO and RE-DPO in one process, without this package: what the engine's figures on the world are held against.

Written as plainly as possible on torch and transformers, straight from the equations of Cao et al. (RE-PO, ICLR 2026).
It shares no code with ``nemo_rpo`` beyond the files that ``nemo_rpo.world`` writes, so an error in the losses, the EM
or the engine does not repeat itself here.

    python benchmarks/plain_reference.py --seeds 0 1 2 3 4

For every seed it writes a world, trains both methods at the same settings, and prints the share of fresh noise-free
pairs whose margin is positive, and the distance of the estimated reliabilities from the realised accuracy of every
annotator's labels.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

METHODS = ("dpo", "re_dpo")


@dataclass(frozen=True)
class Settings:
    beta: float = 0.5
    lr: float = 6e-3
    min_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup_steps: int = 10
    batch_size: int = 128
    epochs: int = 2
    clip_grad: float = 1.0
    eta_init: float = 0.9
    ema_rate: float = 0.1
    eta_epsilon: float = 1e-4
    prior: tuple[float, float] = (3.0, 1.0)  # pseudo-labels right and wrong
    sweep_iterations: int = 100
    sweep: str = "epoch"  # or "end": only after the last step


def read_pairs(path: Path, tokenizer) -> tuple[torch.Tensor, torch.Tensor, list[str | None]]:
    """Token ids of the chosen and the rejected texts [N, 12], and the annotators. Every prompt is bos, style, sep."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def encode(row: dict, side: str) -> list[int]:
        response = tokenizer(row[side], add_special_tokens=False).input_ids
        return [*tokenizer(row["prompt"]).input_ids, *response, tokenizer.eos_token_id]

    chosen, rejected = (torch.tensor([encode(row, side) for row in rows]) for side in ("chosen", "rejected"))
    return chosen, rejected, [row.get("annotator") for row in rows]


def response_logps(model, ids: torch.Tensor) -> torch.Tensor:
    """log pi(response | prompt) [n], summed over the tokens after the three of the prompt."""
    logps = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
    return logps.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, 2:].sum(-1)


def log_ratio(model, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    return response_logps(model, chosen) - response_logps(model, rejected)


def learning_rate(step: int, total: int, s: Settings) -> float:
    if step < s.warmup_steps:
        return s.lr * (step + 1) / s.warmup_steps
    progress = (step - s.warmup_steps) / max(1, total - s.warmup_steps)
    return s.min_lr + (s.lr - s.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def posterior(delta: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
    """E-step (Eq. 4): the probability that a recorded label is right."""
    return torch.sigmoid(delta + torch.logit(eta))


def train(world: Path, method: str, s: Settings, seed: int) -> dict:
    """Align the world's model: its clean accuracy and, for RE-DPO, the reliabilities of the EMA and the sweep."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    chosen, rejected, names = read_pairs(world / "train.jsonl", tokenizer)
    ids = sorted(set(names))
    annotator = torch.tensor([ids.index(name) for name in names])
    with torch.no_grad():
        reference = log_ratio(model, chosen, rejected)

    eta = torch.full((len(ids),), s.eta_init)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)
    order = torch.Generator().manual_seed(seed)
    steps = len(chosen) // s.batch_size
    for step in range(steps * s.epochs):
        if step % steps == 0:
            shuffled = torch.randperm(len(chosen), generator=order)
        batch = shuffled[(step % steps) * s.batch_size :][: s.batch_size]
        delta = s.beta * (log_ratio(model, chosen[batch], rejected[batch]) - reference[batch])
        w = torch.ones_like(delta)
        if method == "re_dpo":
            w = posterior(delta.detach(), eta[annotator[batch]])
        loss = -(w * F.logsigmoid(delta) + (1 - w) * F.logsigmoid(-delta)).mean()
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps * s.epochs, s)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip_grad)
        optimizer.step()
        for k in annotator[batch].unique():
            eta[k] = (1 - s.ema_rate) * eta[k] + s.ema_rate * w[annotator[batch] == k].mean()
        eta.clamp_(s.eta_epsilon, 1 - s.eta_epsilon)
        if (step + 1) % steps == 0:
            running = eta
            with torch.no_grad():
                margins = s.beta * (log_ratio(model, chosen, rejected) - reference)
            swept = sweep(margins, annotator, running, s)
            eta = swept if s.sweep == "epoch" else running

    result = {"accuracy": clean_accuracy(model, world, tokenizer)}
    if method == "re_dpo":
        result |= {"ema": dict(zip(ids, running.tolist(), strict=True))}
        result |= {"sweep": dict(zip(ids, swept.tolist(), strict=True))}
    return result


def sweep(delta: torch.Tensor, annotator: torch.Tensor, eta: torch.Tensor, s: Settings) -> torch.Tensor:
    """Full-batch EM over the reliabilities with the policy fixed, under a prior worth a right and b wrong labels."""
    a, b = s.prior
    for _ in range(s.sweep_iterations):
        w = posterior(delta, eta[annotator])
        total = torch.zeros_like(eta).index_add_(0, annotator, w)
        count = torch.bincount(annotator, minlength=len(eta))
        eta = ((total + a) / (count + a + b)).clamp(s.eta_epsilon, 1 - s.eta_epsilon)
    return eta


@torch.no_grad()
def clean_accuracy(model, world: Path, tokenizer) -> float:
    """Share of the noise-free validation pairs on which the aligned model's margin over the reference is positive."""
    chosen, rejected, _ = read_pairs(world / "validation.jsonl", tokenizer)
    reference = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    return float((log_ratio(model, chosen, rejected) > log_ratio(reference, chosen, rejected)).float().mean())


def errors(estimate: dict[str, float], truth: dict) -> list[float]:
    return [abs(estimate[name] - row["realised_accuracy"]) for name, row in truth["annotators"].items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    accuracy: dict[str, list[float]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            world = Path(folder) / str(seed)
            command = [sys.executable, "-m", "nemo_rpo.world", "--out", str(world), "--seed", str(seed)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            truth = json.loads((world / "truth.json").read_text())
            for method in METHODS:
                result = train(world, method, Settings(), seed)
                accuracy[method].append(result["accuracy"])
                print(f"seed {seed}  {method:7s} clean accuracy {result['accuracy']:.3f}", end="")
                for kind in ("ema", "sweep"):
                    if kind in result:
                        off = errors(result[kind], truth)
                        print(f"  {kind} |eta - realised| mean {statistics.mean(off):.3f} max {max(off):.3f}", end="")
                print(flush=True)
    for method, values in accuracy.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{method:7s} {statistics.mean(values):.3f} ± {spread:.3f} over {len(values)} seeds")


if __name__ == "__main__":
    main()
