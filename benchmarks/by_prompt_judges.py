"""Battles told by careful and careless judges: does the EM find who they are, and is the head of prompts better for it?

    python -m benchmarks.by_prompt_judges [--seeds 3] [--write docs/by_prompt.md]

The planted worlds of ``by_prompt``; a judge reports who won a battle, and with a probability of his own the other.
The head of `p2l_bt` is fitted to the verdicts as they are (of several the share), under the EM (its posterior and the
full fit of reliabilities in turn, a few steps of the head between), and with the reliabilities known; all are judged by
the log-loss of 5,000 fresh battles told truly, and by how often they know the truly better model. Of reliabilities: the
mean error, and the greatest.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from benchmarks.by_prompt import MODELS, RIDGE, battles, log_loss, prompts
from benchmarks.markdown_table import replace_block
from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.e_step import posterior
from nemo_rpo.em.em_settings import BufferSettings
from nemo_rpo.em.fit.full_fit import estimate
from nemo_rpo.em.objective import robust_loss
from nemo_rpo.losses import PairLogprobs, build_loss

CARE = np.array([0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.2])  # the last one means the opposite of what he says
ROUNDS, STEPS = 30, 10
LOSS = build_loss("p2l_bt")


class Told:
    """Battles on prompts with ``each`` verdicts of different judges; the chosen side is the first judge's winner."""

    def __init__(self, rng: np.random.Generator, x: np.ndarray, theta: np.ndarray, each: int) -> None:
        won, lost = battles(rng, theta)
        judge = np.argsort(rng.random((len(x), len(CARE))), 1)[:, :each]
        said = np.where(rng.random(judge.shape) < CARE[judge], 1, -1)
        first = said[:, :1] > 0
        self.x = torch.from_numpy(x)
        self.sides = tuple(torch.from_numpy(np.where(first[:, 0], *of)) for of in ((won, lost), (lost, won)))
        self.votes = Votes(torch.from_numpy(judge), torch.from_numpy(said * said[:, :1]).double())

    def pairs(self, weight: Tensor) -> PairLogprobs:
        columns = {"coefficients": self.x @ weight.t(), "tie": torch.zeros(len(self.x))}
        return PairLogprobs(None, None, response_columns={"player": self.sides}, pair_columns=columns)


def steps(told: Told, weight: Tensor, w: Tensor, count: int) -> Tensor:
    """The head after so many steps of L-BFGS on the loss under the posteriors ``w`` [P]."""
    weight = weight.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=count, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = robust_loss(LOSS.terms(told.pairs(weight)), w).mean() + RIDGE * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach()


def under_em(told: Told, weight: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """The head and the reliabilities [K]; those of ``known`` where they are."""
    settings = EMSettings(estimator="buffer", buffer=BufferSettings(fit_temperature=False))  # the link is exact
    eta = torch.full((len(CARE),), settings.eta_init, dtype=torch.float64) if known is None else known
    for _ in range(ROUNDS):
        delta = LOSS.terms(told.pairs(weight)).delta
        if known is None:
            eta = estimate(delta, told.votes, eta, settings).eta
        weight = steps(told, weight, posterior(delta, told.votes, eta.logit()), STEPS)
    return weight, eta


def world(seed: int, games: int, each: int) -> np.ndarray:
    """Log-loss as told, under the EM, with known reliabilities, of the truth; the share known of the first three; mean
    and greatest error of a reliability.
    """
    rng = np.random.default_rng([games, each, seed])
    spread = np.r_[0.5, [0.8] * 3, [0.25] * 12][:, None]
    planted = rng.normal(size=(len(spread), MODELS)) * spread
    x, _ = prompts(rng, games)
    told = Told(rng, x, x @ planted, each)
    share, care = told.votes.share().double(), torch.from_numpy(CARE)
    plain = steps(told, torch.zeros(MODELS, x.shape[1], dtype=torch.float64), share, 200)
    heads = [plain, (of_em := under_em(told, plain, None))[0], under_em(told, plain, care)[0]]
    fresh, _ = prompts(rng, 5000)
    truth = fresh @ planted
    outcome = battles(rng, truth)
    said = [fresh @ head.numpy().T for head in heads]
    rows, (a, b) = np.arange(5000), outcome
    better = np.sign(truth[rows, a] - truth[rows, b])
    knows = [float((np.sign(of[rows, a] - of[rows, b]) == better).mean()) for of in said]
    error = np.abs(of_em[1].numpy() - CARE)
    return np.array([*(log_loss(of, *outcome) for of in (*said, truth)), *knows, error.mean(), error.max()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    args = parser.parse_args()
    heads = ["as told", "EM", "known", "the truth's", "gain"]
    heads += ["knows the better, as told", "EM", "known", "error of η", "at most"]
    lines = [f"| battles, verdicts | log-loss, {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for games, each in ((4000, 1), (16000, 1), (2000, 3), (8000, 3)):
        found = np.array([world(seed, games, each) for seed in range(args.seeds)])
        found = np.insert(found, 4, found[:, 0] - found[:, 1], 1)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(found.mean(0), found.std(0, ddof=1), strict=True)]
        lines.append(f"| {games:,}, {each} each | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if args.write:
        replace_block(args.write, "judges of battles", "\n".join(lines))


if __name__ == "__main__":
    main()
