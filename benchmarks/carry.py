"""How much of the last round to believe: annotators over four rounds, who stay as they are or change.

    python -m benchmarks.carry [--seeds 10] [--write docs/loop.md]

40 annotators from Beta(8, 3), 1,200 labels a round, one a pair, calibrated margins of standard deviation 2. In the
second world every fifth annotator is drawn anew before the third round. RMSE of η̂ after the fourth round, and how often
its 95 % interval (on the scale of logit η) holds η. Prints the table of docs/loop.md.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.markdown_table import replace_block, table
from nemo_rpo.em import EMSettings, Votes, estimate, standard_errors
from nemo_rpo.em.belief import answers_behind

ANNOTATORS, LABELS, ROUNDS, POPULATION = 40, 1200, 4, (8.0, 3.0)


def votes_of(eta: Tensor, generator: torch.Generator) -> tuple[Tensor, Votes]:
    """Margins and votes of one round."""
    delta = 2 * torch.randn(LABELS, generator=generator, dtype=torch.float64)
    better = torch.rand(LABELS, generator=generator) < torch.sigmoid(delta)
    annotator = torch.randint(ANNOTATORS, (LABELS, 1), generator=generator)
    right = torch.rand(LABELS, 1, generator=generator) < eta[annotator]
    return delta, Votes(annotator, torch.where(right == better.unsqueeze(1), 1.0, -1.0))


def population(count: int, seed: int) -> Tensor:
    """Reliabilities float64 [count]."""
    torch.manual_seed(seed)
    return torch.distributions.Beta(*(torch.tensor(of, dtype=torch.float64) for of in POPULATION)).sample((count,))


def course(seed: int, carry: float, change: bool) -> tuple[float, float]:
    """RMSE after the last round, and the share of intervals that hold η."""
    settings, generator = EMSettings(), torch.Generator().manual_seed(seed)
    eta, start, known = population(ANNOTATORS, seed), torch.full((ANNOTATORS,), 0.9, dtype=torch.float64), None
    answers = torch.zeros(ANNOTATORS, dtype=torch.float64)
    for number in range(ROUNDS):
        if change and number == 2:
            eta = eta.clone()
            eta[::5] = population(len(eta[::5]), seed + 1000)
        delta, votes = votes_of(eta, generator)
        found = estimate(delta, votes, start, settings, known=known)
        fitted = EMSettings(prior=found.prior, link_tau=found.temperature.value)
        error = standard_errors(delta, votes, found.eta, fitted, scale_fitted=True, known=known)
        labels = torch.bincount(votes.annotator.flatten(), minlength=ANNOTATORS).double() + answers
        start, known = found.eta, carry * answers_behind(found.eta, error, labels, settings.prior)
        answers = known.sum(0)
    off = found.eta - eta
    spread = error / (found.eta * (1 - found.eta))
    held = (torch.logit(found.eta) - torch.logit(eta)).abs() < 1.96 * spread
    return off.square().mean().sqrt().item(), held.double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = {}
    for carry in (0.0, 0.25, 0.5, 0.75, 1.0):
        cells = []
        for change in (False, True):
            rmse, held = torch.tensor([course(seed, carry, change) for seed in range(arguments.seeds)]).unbind(1)
            cells += [f"{rmse.mean():.3f} ± {rmse.std():.3f}", f"{held.mean():.2f}"]
        lines[f"{carry:g}"] = cells
    text = table("carry", ["RMSE, nobody changes", "held", "RMSE, a fifth change", "held"], lines)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "carry", text)


if __name__ == "__main__":
    main()
