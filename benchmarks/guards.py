"""How often each guard speaks on crowds where nothing is wrong, and how surely on the case that it is for.

    python benchmarks/guards.py [--runs 200] [--write docs/estimators.md]

Every crowd is drawn anew: reliabilities, activity, pairs, labels and margins of a policy that was not trained on the
pair it judges. The fit is the default estimator's. The policy's share of right held-out labels comes from 400 of them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from markdown_table import replace_block, table
from torch import Tensor

from nemo_rpo.em import EMSettings, Votes, estimate, evidence_of, full_batch_em, standard_errors, warn_all
from nemo_rpo.em.fit.standard_error import skewed
from nemo_rpo.em.guards import Agreed

HELD_OUT = 400


@dataclass(frozen=True)
class Case:
    """A crowd and what is done to its margins.

    Attributes:
        annotators, labels, votes_per_pair: of the crowd. population: Beta of the reliabilities.
        spread: standard deviation of the policy's calibrated margins; 0: they know nothing.
        scale: what calibrated margins are multiplied by. memorised: nats by which they move to the pair's labels.
        flipped: the policy prefers the wrong answers.
        fit: fit prior and temperature (``estimator: buffer``); else an exact sweep at the settings as they are.
        floor: of the reliabilities, beside the ½ that a fit has for one annotator.
    """

    annotators: int = 50
    labels: int = 6000
    votes_per_pair: int = 1
    population: tuple[float, float] = (10.0, 2.5)
    spread: float = 2.0
    scale: float = 1.0
    memorised: float = 0.0
    flipped: bool = False
    fit: bool = True
    floor: float | None = None


HONEST = {
    "one label a pair, 50 annotators": Case(),
    "… margins three times too large": Case(scale=3.0),
    "… margins of .3 their size": Case(scale=0.3),
    "… weaker policy (spread 1)": Case(spread=1.0),
    "… careful annotators, Beta(40, 2)": Case(population=(40.0, 2.0)),
    "five labels a pair": Case(votes_per_pair=5),
    "five labels a pair, weaker policy": Case(votes_per_pair=5, spread=1.0),
    "one annotator, 80 % right": Case(annotators=1, population=(800.0, 200.0)),
    "one annotator, 90 % right": Case(annotators=1, population=(900.0, 100.0)),
}
# Guard → the case it is for.
CASES = {
    "policy_without_voice": Case(votes_per_pair=5, spread=0.0),
    "lone_annotator_below_half": Case(annotators=1, population=(800.0, 200.0), flipped=True, fit=False),
    "lone_annotator_at_floor": Case(annotators=1, population=(800.0, 200.0), flipped=True, fit=False, floor=0.5),
    "flipped_population": Case(population=(800.0, 200.0), flipped=True),
    "stuck_at_start": Case(spread=0.2),
    "overconfident_margins": Case(memorised=2.5, fit=False),
    "memorised_margins": Case(memorised=1.5, fit=False),
    "certain_annotators": Case(annotators=10, memorised=4.0, fit=False),
    "saturated_posteriors": Case(scale=60.0, fit=False),
}


def draw(case: Case, seed: int) -> tuple[Tensor, Votes, Agreed]:
    """Margins, votes, and how the policy does on held-out labels of the same crowd."""
    rng = np.random.default_rng(seed)
    eta = rng.beta(*case.population, size=case.annotators)
    activity = np.exp(rng.normal(size=case.annotators))
    pairs = case.labels // case.votes_per_pair + HELD_OUT
    races = rng.exponential(size=(pairs, case.annotators)) / activity
    annotator = np.argsort(races, axis=1)[:, : case.votes_per_pair]
    believed = (case.spread or 2.0) * rng.normal(size=pairs)
    known = believed if case.spread else 0.0 * believed
    better = rng.random((pairs, 1)) < 1 / (1 + np.exp(-known[:, None]))
    right = rng.random(annotator.shape) < eta[annotator]
    sign = np.where(right == better, 1.0, -1.0)
    margin = case.scale * believed * (-1 if case.flipped else 1)
    agreed = Agreed(float((sign[:HELD_OUT, 0] * margin[:HELD_OUT] > 0).sum()), HELD_OUT)
    margin = margin + case.memorised * sign.mean(-1)
    kept = slice(HELD_OUT, None)
    votes = Votes(torch.from_numpy(annotator[kept]), torch.from_numpy(sign[kept]))
    return torch.from_numpy(margin[kept]), votes, agreed


def spoken(case: Case, seed: int) -> set[str]:
    """The guards that speak of one crowd."""
    delta, votes, held_out = draw(case, seed)
    settings, temperature = EMSettings(eta_floor=case.floor), None
    start = torch.full((case.annotators,), settings.eta_init, dtype=torch.float64)
    counts = torch.bincount(votes.annotator.flatten(), minlength=case.annotators).double()
    eta, errors, fitted = start, torch.full_like(start, math.nan), settings
    if case.fit:
        floor = replace(settings, eta_floor=0.5) if case.annotators == 1 else settings
        found = estimate(delta, votes, start, floor)
        temperature, eta = found.temperature, found.eta
        fitted = replace(settings, prior=found.prior, link_tau=temperature.value)
        if found.sweep is not None:
            errors = skewed(standard_errors(delta, votes, eta, fitted, scale_fitted=temperature.fitted), eta)
    else:
        eta = full_batch_em(delta, votes, start, settings).eta
        errors = skewed(standard_errors(delta, votes, eta, settings), eta)
    evidence = evidence_of(delta, votes, fitted)
    found = warn_all(eta, counts, settings.eta_init, evidence, errors, temperature, held_out)
    return {warned.guard for warned in found}


def rates(case: Case, runs: int, first: int, speaks: Callable[[set[str]], bool]) -> str:
    """Share of the runs in which guards speak, with Wilson's 95 % interval."""
    n = sum(speaks(spoken(case, first + run)) for run in range(runs))
    centre, z2 = n / runs, 1.96**2
    middle = (centre + z2 / (2 * runs)) / (1 + z2 / runs)
    half = 1.96 / (1 + z2 / runs) * math.sqrt(centre * (1 - centre) / runs + z2 / (4 * runs**2))
    return f"{centre:.3f} [{max(0, middle - half):.3f}, {min(1, middle + half):.3f}]"


def report(runs: int) -> str:
    """Both tables in Markdown."""
    alarms = {name: [rates(case, runs, 10_000 * row, bool)] for row, (name, case) in enumerate(HONEST.items(), start=1)}
    power = {
        guard: [rates(case, runs, 500_000 + 10_000 * row, lambda found, guard=guard: guard in found)]
        for row, (guard, case) in enumerate(CASES.items())
    }
    return "\n\n".join((table("nothing is wrong", ["any guard speaks"], alarms), table("guard", ["power"], power)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = report(arguments.runs)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "guards", text)


if __name__ == "__main__":
    main()
