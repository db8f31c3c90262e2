"""How well the reliabilities of a long-tailed population are estimated from margins that are given.

    python benchmarks/estimators.py [--seeds 10] [--votes-per-pair 1] [--coverage] [--write docs/estimators.md]

227 annotators, 10,000 labels, log-normal activity (standard deviation 1.3 of the logarithm: the middle annotator has a
fifth of the mean's labels), reliabilities from Beta(10, 2.5) (mean .80, standard deviation .11). These are between the
worker populations of the public sets rte and sp (Beta(11, 2.2) and Beta(8.5, 2.3), activity .7 and 1.6). Margins are
N(0, 2²) and calibrated, then disturbed. Printed is the root mean square error of η over annotators, mean over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from markdown_table import replace_block, table
from torch import Tensor

from nemo_rpo.em import (
    AnnotatorReliability,
    EMSettings,
    Estimate,
    Votes,
    estimate,
    full_batch_em,
    posterior,
    standard_errors,
)
from nemo_rpo.em.fit.baselines import one_coin
from nemo_rpo.em.fit.standard_error import skewed

ANNOTATORS, LABELS, BATCH = 227, 10_000, 64
POPULATION = (10.0, 2.5)
STARTS = (0.80, 0.90, 0.95, 0.99)
CONDITIONS = ("calibrated", "× 0.3", "× 3", "memorised")
SCALES = (1.0, 0.3, 3.0)


class Population(NamedTuple):
    delta: Tensor
    votes: Votes
    eta: Tensor
    better: Tensor

    def disturbed(self, condition: str) -> Tensor:
        """The margins that an estimator reads; memorised: every pair one nat further towards its own labels."""
        if condition == "memorised":
            return self.delta + self.votes.sign.mean(-1)
        return self.delta * SCALES[CONDITIONS.index(condition)]


def draw(seed: int, votes_per_pair: int) -> Population:
    rng = np.random.default_rng(seed)
    eta = rng.beta(*POPULATION, size=ANNOTATORS)
    activity = np.exp(1.3 * rng.normal(size=ANNOTATORS))
    pairs = LABELS // votes_per_pair
    races = rng.exponential(size=(pairs, ANNOTATORS)) / activity
    annotator = np.argsort(races, axis=1)[:, :votes_per_pair]
    delta = 2.0 * rng.normal(size=pairs)
    better = rng.random((pairs, 1)) < 1 / (1 + np.exp(-delta[:, None]))
    right = rng.random(annotator.shape) < eta[annotator]
    votes = Votes(torch.from_numpy(annotator), torch.from_numpy(np.where(right == better, 1.0, -1.0)))
    return Population(torch.from_numpy(delta), votes, torch.from_numpy(eta), torch.from_numpy(better[:, 0]))


def ema(delta: Tensor, votes: Votes, start: float) -> Tensor:
    """One epoch of the paper's Algorithm 1 on given margins."""
    reliability = AnnotatorReliability(ANNOTATORS, EMSettings(eta_init=start))
    for rows in torch.arange(len(delta)).split(BATCH):
        batch = Votes(votes.annotator[rows], votes.sign[rows])
        w = reliability.posterior(delta[rows], batch)
        reliability.accumulate(w, batch, torch.ones(len(rows), dtype=torch.bool))
        reliability.commit()
    return reliability.eta


def buffer(delta: Tensor, votes: Votes, start: float) -> Estimate:
    settings = EMSettings(estimator="buffer", eta_init=start)
    return estimate(delta, votes, torch.full((ANNOTATORS,), start, dtype=torch.float64), settings)


def sweep(delta: Tensor, votes: Votes, start: float, prior: tuple[float, float] = EMSettings.prior) -> Tensor:
    return full_batch_em(delta, votes, torch.full((ANNOTATORS,), start), EMSettings(prior=prior)).eta


def bayes(world: Population) -> Tensor:
    """Posterior means under the true prior and scale: no estimator of η has a smaller expected square error.

    Annotators are independent given the margins only where a pair has one label.
    """
    eta = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    p = torch.sigmoid(world.delta * world.votes.sign[:, 0]).unsqueeze(-1)
    a, b = POPULATION
    log_posterior = ((a - 1) * eta.log() + (b - 1) * (1 - eta).log()).repeat(ANNOTATORS, 1)
    log_posterior.index_add_(0, world.votes.annotator[:, 0], torch.log(p * eta + (1 - p) * (1 - eta)))
    return torch.softmax(log_posterior, -1) @ eta


def rmse(worlds: list[Population], estimator: Callable[[Population], Tensor]) -> float:
    """Root mean square over the annotators that gave a label (a data set knows no others), mean over worlds."""

    def of_one(world: Population) -> float:
        occurs = world.votes.annotator.unique()
        return (estimator(world) - world.eta)[occurs].square().mean().sqrt().item()

    return float(np.mean([of_one(world) for world in worlds]))


def errors(worlds: list[Population], condition: str) -> dict[str, float]:
    """Estimator -> RMSE under one condition; of the buffer, from the worst of the starts."""

    def worst_buffer(read: str) -> float:
        return max(rmse(worlds, lambda x, s=start: buffer(x.disturbed(read), x.votes, s).eta) for start in STARTS)

    found = {
        f"ema, η₀ {start:.2f}": rmse(worlds, lambda x, s=start: ema(x.disturbed(condition), x.votes, s))
        for start in STARTS
    }
    found["exact sweep, prior (3, 1)"] = rmse(worlds, lambda x: sweep(x.disturbed(condition), x.votes, 0.9))
    found["buffer, latest margins"] = worst_buffer(condition)
    # A margin that was taken before the pair's first gradient has not been drawn to its label.
    found["buffer, prequential margins"] = worst_buffer("calibrated" if condition == "memorised" else condition)
    return found


def undisturbed_errors(worlds: list[Population]) -> dict[str, float]:
    """RMSE of the estimators that read no margins, or know what was done to them."""
    # Without margins, EM walks slowly from its start to the prior.
    unhurried = EMSettings(sweep_max_iterations=20_000, sweep_tolerance=1e-5)
    found = {
        "one-coin EM, no margins": rmse(worlds, lambda x: one_coin(x.votes, ANNOTATORS, unhurried).eta),
        "sweep, prior and scale known": rmse(worlds, lambda x: sweep(x.delta, x.votes, 0.9, POPULATION)),
    }
    if worlds[0].votes.sign.shape[-1] == 1:
        found["Bayes optimum, prior and scale known"] = rmse(worlds, bayes)
    return found


def temperatures(worlds: list[Population]) -> dict[str, list[str]]:
    """Scale of the margins -> how often τ was identified, how far off it was, and how far off it said it was."""
    rows = {}
    for condition, scale in zip(CONDITIONS, SCALES, strict=False):
        found = [buffer(world.disturbed(condition), world.votes, 0.9).temperature for world in worlds]
        ratio = np.array([temperature.value / scale for temperature in found])
        rows[condition] = [
            f"{sum(temperature.identified for temperature in found)} of {len(found)}",
            f"{np.median(ratio):.2f}",
            f"{np.mean(np.abs(ratio - 1) <= 0.1):.0%}",
            f"{np.sqrt(np.mean(np.log(ratio) ** 2)):.3f}",
            f"{np.mean([temperature.log_error for temperature in found]):.3f}",
        ]
    return rows


def coverage(worlds: list[Population]) -> str:
    """How often stated 95 % intervals (on the scale of logit η) hold the truth, and how far posteriors are off."""
    rows = {}
    for name, scale in (("buffer", 1.0), ("buffer, margins × 3", 3.0), ("exact sweep, prior (3, 1)", 1.0)):
        inside, gaps = [], []
        for world in worlds:
            delta, settings, fitted = scale * world.delta, EMSettings(), False
            if name.startswith("buffer"):
                found = buffer(delta, world.votes, 0.9)
                settings = replace(settings, prior=found.prior, link_tau=found.temperature.value)
                eta, fitted = found.eta, found.temperature.fitted
            else:
                eta = sweep(delta, world.votes, 0.9).double()
            error = skewed(standard_errors(delta, world.votes, eta, settings, scale_fitted=fitted), eta)
            occurs = world.votes.annotator.unique()
            off = (eta.logit() - world.eta.logit()).abs() <= 1.96 * error / (eta * (1 - eta))
            inside.append(off[occurs].double().mean().item())
            w = posterior(delta, world.votes, eta.logit(), settings.link_tau)
            gaps.append(calibration_error(w, world.better))
        spread = np.std(inside, ddof=1) / np.sqrt(len(inside))
        rows[name] = [f"{np.mean(inside):.3f} ± {spread:.3f}", f"{np.mean(gaps):.4f}"]
    return table("95 % intervals and w", ("coverage", "ECE of w"), rows)


def calibration_error(w: Tensor, better: Tensor, bins: int = 10) -> float:
    """Expected calibration error: mean over pairs of |mean w - share that is better| of the pair's tenth by w."""
    order = torch.argsort(w)
    pieces = zip(w[order].tensor_split(bins), better[order].double().tensor_split(bins), strict=True)
    return sum(len(p) * abs(p.mean() - b.mean()).item() for p, b in pieces) / len(w)


def report(worlds: list[Population]) -> str:
    everywhere = undisturbed_errors(worlds)
    by_condition = [errors(worlds, condition) | everywhere for condition in CONDITIONS]
    body = {name: [f"{found[name]:.3f}" for found in by_condition] for name in by_condition[0]}
    scale_heads = ("identified", "median τ̂/τ", "within 10 %", "rms log τ̂/τ", "stated error")
    return "\n\n".join((table("RMSE of η̂", CONDITIONS, body), table("margins", scale_heads, temperatures(worlds))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--votes-per-pair", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--coverage", action="store_true", help="the intervals and the calibration of w alone")
    parser.add_argument("--write", help="replace the block of this setting in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    worlds = [
        draw(seed, arguments.votes_per_pair)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    ]
    text = coverage(worlds) if arguments.coverage else report(worlds)
    print(text)
    if arguments.write:
        block = "coverage" if arguments.coverage else "given margins"
        replace_block(arguments.write, f"{block}, {arguments.votes_per_pair} a pair", text)


if __name__ == "__main__":
    main()
