"""Labels without ids, some of them flipped: the default estimator beside losses that are told, or guess, the noise.

    python benchmarks/no_ids.py [--policy scorer|llama] [--seeds 5] [--flips 0.1 0.2] [--only RE-DPO] [--write FILE]

Two worlds over the texts of the preference world (docs/preference_world.md), 6,000 pairs, three epochs in batches of
64: ``sure``, where the better response of pairs that differ by 2 or more is labelled, and ``bt``, where the label of
pairs that differ by .5 or more is drawn from a Bradley-Terry preference, σ(difference of qualities). Then labels are
flipped. Printed is the share of 2,000 fresh pairs (1,000 of the scorer) whose better response the policy prefers, mean
± standard error over seeds, and what the default says of the labels.

``scorer``: a network that scores counts and places of tokens, at a rate at which its first margins are large and wrong
(minutes). ``llama``: the preference world's own policy at the demo's settings (about ten seconds a run).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from many_policies import ManyAdams, ManyLlamas
from markdown_table import replace_block, table
from torch import Tensor

from nemo_rpo.em import BufferedReliability, EMSettings, MarginBuffer, PairStep, Votes
from nemo_rpo.losses import PairLogprobs, PreferenceLoss, build_loss
from nemo_rpo.world import Language, LanguageConfig, draw_pairs

PAIRS, BATCH, EPOCHS, BETA = 6000, 64, 3, 0.5
WORLDS = {"sure": 2.0, "bt": 0.5}  # name → least difference of qualities
HIDDEN, OUTPUT_SCALE = 64, 8.0


class Policy(Protocol):
    """R policies that train side by side."""

    weights: dict[str, Tensor]

    def log_probs(self, texts: Tensor) -> Tensor:
        """[R, n] of texts [n, …]."""
        ...


class Scorers:
    """R copies of a network from a text's tokens, counted by style and by place, to one number."""

    def __init__(self, runs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        language = LanguageConfig()
        features = language.content * (language.styles + language.length)
        first = torch.randn(features, HIDDEN, generator=generator) / 4
        last = torch.randn(HIDDEN, 1, generator=generator) * OUTPUT_SCALE / math.sqrt(HIDDEN)
        self.weights = {
            name: w.repeat(runs, 1, 1).requires_grad_() for name, w in {"first": first, "last": last}.items()
        }

    def log_probs(self, texts: Tensor) -> Tensor:
        """A score that stands for log π(response | prompt): [R, n] of features [n, F]."""
        return (F.silu(texts @ self.weights["first"]) @ self.weights["last"]).squeeze(-1)


class World:
    """Pairs and their labels before any is flipped; ``better`` and ``worse`` as the policy reads them."""

    def __init__(self, seed: int, kind: str, policy: str) -> None:
        language, rng = Language(LanguageConfig(), seed), np.random.default_rng([seed, len(kind)])
        pairs = draw_pairs(language, PAIRS, WORLDS[kind], rng)
        fresh = draw_pairs(language, 2000 if policy == "llama" else 1000, WORLDS[kind], rng)
        read = _tokens if policy == "llama" else _features
        self.better, self.worse = (read(language, pairs.style, side) for side in (pairs.better, pairs.worse))
        self.fresh = [read(language, fresh.style, side) for side in (fresh.better, fresh.worse)]
        agrees = rng.random(PAIRS) < 1 / (1 + np.exp(-pairs.gap))
        self._label = np.where(agrees, 1.0, -1.0) if kind == "bt" else np.ones(PAIRS)
        self._flip = rng.random(PAIRS)

    def labels(self, flips: float) -> Tensor:
        """+1 where the label names the better response [n]."""
        return torch.from_numpy(np.where(self._flip < flips, -self._label, self._label)).float()

    def right(self, flips: float) -> float:
        """The share of labels that were not flipped: what η is."""
        return float((self._flip >= flips).mean())


def _tokens(language: Language, style: np.ndarray, response: np.ndarray) -> Tensor:
    return torch.from_numpy(language.token_ids(style, response))


def _features(language: Language, style: np.ndarray, response: np.ndarray) -> Tensor:
    content, tokens = language.config.content, torch.from_numpy(response)
    by_style = F.one_hot(tokens + content * torch.from_numpy(style)[:, None], content * language.config.styles).sum(1)
    return torch.cat((by_style, F.one_hot(tokens, content).flatten(1)), 1).float()


class Run:
    """One loss on one set of labels."""

    def __init__(self, loss: PreferenceLoss, sign: Tensor, settings: EMSettings | None = None) -> None:
        self.sign, self.em = sign, None
        if settings is not None:
            votes = Votes.single(torch.zeros(len(sign), dtype=torch.long))
            self.em = BufferedReliability(1, settings, MarginBuffer(len(sign)), votes)
        objective = "weighted" if settings is None else settings.objective_in_force
        self.step = PairStep(loss, objective, preference_weight=1.0, sft_weight=0.0, average_sft=False)

    def loss(self, better: Tensor, worse: Tensor, rows: Tensor) -> Tensor:
        """Of the pairs ``rows``; ``better`` and ``worse`` [2, b] are log-probs of policy and reference."""
        says_better = self.sign[rows] > 0
        chosen, rejected = torch.where(says_better, better, worse), torch.where(says_better, worse, better)
        x = PairLogprobs(chosen[0], rejected[0], chosen[1], rejected[1])
        votes, valid = Votes.single(torch.zeros(len(rows), dtype=torch.long)), torch.ones(len(rows), dtype=torch.bool)
        found = self.step(x, votes, valid, self.em, rows if self.em else None)
        if self.em is not None:
            self.em.exchange(lambda own: own)
            self.em.commit()
        return found.objective.sum() / found.statistic.sum()


def train(world: World, make: Callable[[int], Policy], runs: list[Run], lr: float, seed: int) -> list[float]:
    """Trains all runs on the same pairs in the same order; their accuracies on fresh pairs."""
    policy, reference = make(len(runs)), make(1)
    with torch.no_grad():
        frozen = [reference.log_probs(texts)[0] for texts in (world.better, world.worse)]
        before = [reference.log_probs(texts) for texts in world.fresh]
    steps = PAIRS // BATCH
    adams = ManyAdams(policy.weights, lr, warmup_steps=10, total=steps * EPOCHS)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps * EPOCHS):
        if step % steps == 0:
            shuffled = torch.randperm(PAIRS, generator=order)
        rows = shuffled[(step % steps) * BATCH :][:BATCH]
        now = policy.log_probs(torch.cat((world.better[rows], world.worse[rows]))).unflatten(1, (2, -1))
        pairs = [[torch.stack((one[side], frozen[side][rows])) for side in (0, 1)] for one in now]
        adams.step(sum(run.loss(*sides, rows) for run, sides in zip(runs, pairs, strict=True)))
    with torch.no_grad():
        after = [policy.log_probs(texts) for texts in world.fresh]
    margin = (after[0] - before[0]) - (after[1] - before[1])
    return (margin > 0).float().mean(-1).tolist()


def methods(flips: float) -> dict[str, tuple[PreferenceLoss, EMSettings | None]]:
    """Name → loss and, for those with an EM, its settings."""

    def loss(name: str, **options: float) -> PreferenceLoss:
        return build_loss(name, beta=BETA, **options)

    return {
        "DPO": (loss("dpo"), None),
        "cDPO, ε = .1": (loss("cdpo", label_smoothing=0.1), None),
        "rDPO, true ε": (loss("rdpo", label_smoothing=flips), None),
        "Dr. DPO": (loss("dr_dpo"), None),
        "ROPO": (loss("ropo"), None),
        "Hölder-DPO": (loss("holder_dpo"), None),
        "RE-DPO": (loss("dpo"), EMSettings()),
        "RE-DPO, induced": (loss("dpo"), EMSettings(objective="induced")),
    }


def interval_of(run: Run) -> tuple[float, float] | None:
    """95 % interval of η on the scale of its logit; None where it was kept at its start."""
    run.em.settle()
    found = run.em.findings()
    if found is None:
        return None
    eta, error = run.em.eta.item(), found[0].item()
    middle, half = math.log(eta / (1 - eta)), 1.96 * error / (eta * (1 - eta))
    return 1 / (1 + math.exp(half - middle)), 1 / (1 + math.exp(-half - middle))


def measure(policy: str, kind: str, seed: int, levels: list[float], only: list[str]) -> dict[str, dict[str, Any]]:
    """Of every level of flips: accuracies by method, the default's ``interval`` (or None), and the ``truth`` in it."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(seed, kind, policy)
        make, lr = _maker(policy, Path(folder), seed)
        named = [(name, flips, *of) for flips in levels for name, of in methods(flips).items() if name in only]
        runs = [Run(loss, world.labels(flips), settings) for _, flips, loss, settings in named]
        shares = train(world, make, runs, lr, seed)
    found: dict[str, dict[str, Any]] = {}
    for (name, flips, *_), run, share in zip(named, runs, shares, strict=True):
        of_level = found.setdefault(str(flips), {"truth": world.right(flips)})
        of_level[name] = share
        if name == "RE-DPO":
            of_level["interval"] = interval_of(run)
    return found


def report(policy: str, kind: str, seeds: list[dict[str, dict[str, Any]]], levels: list[float], only: list[str]) -> str:
    """The table of one world in Markdown."""
    columns = [[of_seed[str(flips)] for of_seed in seeds] for flips in levels]
    body = {name: [_mean([found[name] for found in column]) for column in columns] for name in only}
    said: dict[str, list[str]] = {"runs that estimate η": [], "… of which the 95 % interval covers": []}
    for column in columns:
        stated = [(*found["interval"], found["truth"]) for found in column if found["interval"]]
        said["runs that estimate η"].append(f"{len(stated)} of {len(column)}")
        said["… of which the 95 % interval covers"].append(str(sum(low <= t <= high for low, high, t in stated)))
    return table(f"{policy}, {kind}", [f"{flips:.0%} flipped" for flips in levels], body | said)


def _maker(policy: str, folder: Path, seed: int) -> tuple[Callable[[int], Policy], float]:
    if policy == "scorer":
        return lambda runs: Scorers(runs, seed), 1e-2
    command = [sys.executable, "-m", "nemo_rpo.world", "--out", str(folder), "--seed", str(seed), "--labels", "12"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return lambda runs: ManyLlamas(folder / "model", runs), 4e-3


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=("scorer", "llama"), default="scorer")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--flips", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4])
    every = list(methods(0.1))
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="METHOD", help="RE-DPO is always in")
    parser.add_argument("--save", type=Path, help="JSON of every run; a further call goes on from it")
    parser.add_argument("--write", help="replace the policy's block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    levels, first = arguments.flips, arguments.first_seed
    only = [name for name in every if name in (*arguments.only, "RE-DPO")]
    saved = {}
    if arguments.save and arguments.save.exists():
        saved = json.loads(arguments.save.read_text())
    tables = []
    for kind in arguments.worlds:
        seeds = []
        for seed in range(first, first + arguments.seeds):
            key = json.dumps([arguments.policy, kind, seed, levels, only])
            if key not in saved:
                saved[key] = measure(arguments.policy, kind, seed, levels, only)
                print(f"{arguments.policy} {kind} seed {seed} done", file=sys.stderr, flush=True)
            seeds.append(saved[key])
            if arguments.save:
                arguments.save.write_text(json.dumps(saved))
        tables.append(report(arguments.policy, kind, seeds, levels, only))
    text = "\n\n".join(tables)
    print(text, flush=True)
    if arguments.write:
        replace_block(arguments.write, f"no ids, {arguments.policy}", text)


if __name__ == "__main__":
    main()
