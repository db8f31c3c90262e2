"""Planted worlds in which the prompt decides who is best: does the head find it, and what is it worth to a router?

    python -m benchmarks.by_prompt --seeds 5 --plot docs/pictures/by_prompt.svg

Eight models, prompts of three topics with 12 features, strengths linear in them; battles between two models drawn
evenly. The head's equations on the features (`p2l_bt`) against the plain Bradley-Terry model on the same battles, both
judged by the log-loss of 5,000 fresh battles, and routed on fresh prompts under a budget; win
rates are the planted ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from nemo_rpo.losses import PairLogprobs, build_loss
from nemo_rpo.ranking import RankSettings
from nemo_rpo.ranking.prompts.leaderboards import boards, win_rates
from nemo_rpo.ranking.prompts.router import route

MODELS, TOPICS, FEATURES = 8, ("code", "prose", "sums"), 12
COST = np.linspace(0.2, 1.6, MODELS)
RIDGE = 1e-4


def prompts(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 1 + 3 + 12] with a constant and the topic, and the topic of each."""
    topic = rng.integers(len(TOPICS), size=n)
    return np.hstack([np.ones((n, 1)), np.eye(len(TOPICS))[topic], rng.normal(size=(n, FEATURES))]), topic


def battles(rng: np.random.Generator, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Winner and loser on each prompt."""
    n = len(theta)
    first = rng.integers(MODELS, size=n)
    second = (first + rng.integers(1, MODELS, size=n)) % MODELS
    rows = np.arange(n)
    up = rng.random(n) < 1 / (1 + np.exp(theta[rows, second] - theta[rows, first]))
    return np.where(up, first, second), np.where(up, second, first)


def fitted(x: np.ndarray, won: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The head's weights [features, M] at the maximum of the likelihood with a small ridge."""
    weight = torch.zeros(MODELS, x.shape[1], dtype=torch.float64, requires_grad=True)
    hidden, players = torch.from_numpy(x), (torch.from_numpy(won), torch.from_numpy(lost))
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")
    loss, tie = build_loss("p2l_bt"), torch.zeros(len(x))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        columns = {"coefficients": hidden @ weight.t(), "tie": tie}
        pairs = PairLogprobs(None, None, response_columns={"player": players}, pair_columns=columns)
        value = loss(pairs).mean() + RIDGE * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach().numpy().T


def log_loss(theta: np.ndarray, won: np.ndarray, lost: np.ndarray) -> float:
    """Mean -log σ(θ_w - θ_l)."""
    rows = np.arange(len(theta))
    return float(np.logaddexp(0, theta[rows, lost] - theta[rows, won]).mean())


def main() -> None:
    """Prints the table; draws the boards of the first seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    print(
        "| battles | log-loss, plain | by prompt | the truth's | win rate, one mixture | routed | routed by the truth |"
    )
    print("|---:|---|---|---|---|---|---|")
    for games in (1000, 4000, 16000):
        found = []
        for seed in range(args.seeds):
            rng = np.random.default_rng(1000 * games + seed)
            planted = (
                rng.normal(size=(1 + len(TOPICS) + FEATURES, MODELS)) * np.r_[0.5, [0.8] * 3, [0.25] * 12][:, None]
            )
            x, _ = prompts(rng, games)
            won, lost = battles(rng, x @ planted)
            head, plain = fitted(x, won, lost), fitted(x[:, :1], won, lost)
            fresh, topic = prompts(rng, 5000)
            truth = fresh @ planted
            figures = [
                log_loss(of, *outcome)
                for outcome in [battles(rng, truth)]
                for of in (fresh[:, :1] @ plain, fresh @ head, truth)
            ]
            for of in (fresh[:500, :1] @ plain, fresh[:500] @ head, truth[:500]):
                share = route(win_rates(of), COST, 0.6).share
                figures.append(float((share * win_rates(truth[:500])).sum() / 500))
            found.append(figures)
            if args.plot and games == 16000 and seed == 0:
                from nemo_rpo.report.rendering.ranking_plots import strengths_by_topic

                named = [TOPICS[of] for of in topic[:300]]
                drawn = boards((fresh @ head)[:300], named, RankSettings(bootstrap=100))
                args.plot.write_text(strengths_by_topic(drawn, [f"model {i}" for i in range(MODELS)]), encoding="utf-8")
        cells = [f"{np.mean(of):.3f} ± {np.std(of, ddof=1):.3f}" for of in zip(*found, strict=True)]
        print(f"| {games:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
