r"""What is peculiar to judges: position bias, ties, verdicts that cannot be read, and whether they repeat themselves.

With w the probability that the response shown first is better, by all votes together,

    α = P(says first | first is better)  = Σ w [says first] / Σ w
    β = P(says second | second is better) = Σ (1-w) [says second] / Σ (1-w)        δ = (α - β) / 2

over a judge's signed verdicts. A judge without a leaning has α = β, his accuracy; one who always says "first" has
α = 1, β = 0, δ = ½. Where the order was a toss of a coin δ is the share of "first" less ½, whatever the truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nemo_rpo.em.label_model.choose import slot_log_bayes_factor
from nemo_rpo.judging.collecting import Judged
from nemo_rpo.judging.verdicts import FIRST, SECOND, TIE, Verdict
from nemo_rpo.shares import Share, share


@dataclass(frozen=True)
class Habits:
    """Of one judge; shares have 95 % intervals.

    Attributes:
        judge: name.
        verdicts: asked for. unparsed: of them, without a verdict.
        ties: share of ties among those that could be read.
        alpha, beta: see above; empty of a judge to whom order means nothing.
        delta: position bias, from -½ to ½; None without an order.
        position: log Bayes factor of a position bias against none, in nats; of pairs shown in one order.
        consistent: of pairs shown in both orders, the share with the same answer twice.
        seconds: mean time of a verdict.
        off: why the judge was switched off; empty otherwise.
    """

    judge: str
    verdicts: int
    unparsed: int
    ties: Share
    alpha: Share
    beta: Share
    delta: float | None
    position: float | None
    consistent: Share
    seconds: float
    off: str


def habits_of(judged: Judged, p_a: Mapping[str, float]) -> Habits:
    """From a judge's verdicts and the probability of each pair that its response a is better."""
    said = [verdict for verdict in judged.verdicts if verdict.said is not None]
    signed = [verdict for verdict in said if verdict.said != TIE and verdict.shown_first]
    alpha = _weighed(signed, FIRST, p_a)
    beta = _weighed(signed, SECOND, p_a)
    firsts = sum(verdict.said == FIRST for verdict in signed)
    one_order = len({verdict.pair for verdict in signed}) == len(signed)
    seconds = [verdict.latency for verdict in judged.verdicts]
    return Habits(
        judge=judged.name,
        verdicts=len(judged.verdicts),
        unparsed=len(judged.verdicts) - len(said),
        ties=share(sum(verdict.said == TIE for verdict in said), len(said)),
        alpha=alpha,
        beta=beta,
        delta=firsts / len(signed) - 0.5 if signed else None,
        position=slot_log_bayes_factor(firsts, len(signed)) if signed and one_order else None,
        consistent=_consistent(judged.verdicts),
        seconds=math.fsum(seconds) / len(seconds) if seconds else math.nan,
        off=judged.off,
    )


def _weighed(signed: list[Verdict], which: str, p_a: Mapping[str, float]) -> Share:
    """Share of verdicts for a place, each weighed by the probability that the response there is better."""
    weight = hits = 0.0
    for verdict in signed:
        w = p_a.get(verdict.pair, 0.5)
        w = w if (which == FIRST) == (verdict.shown_first == "a") else 1 - w
        weight += w
        hits += w * (verdict.said == which)
    whole = round(weight)
    return share(hits / weight * whole, whole) if whole else share(0, 0)


def _consistent(verdicts: list[Verdict]) -> Share:
    by_pair: dict[str, list[int | None]] = {}
    for verdict in verdicts:
        by_pair.setdefault(verdict.pair, []).append(verdict.sign)
    both = [signs for signs in by_pair.values() if len(signs) == 2 and None not in signs]
    return share(sum(a == b for a, b in both), len(both))
