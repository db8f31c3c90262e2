r"""Does an annotator get better or worse over the own sequence of labels? A test, and a curve for everybody.

With t ∈ [-√3, √3] the place of a vote in its annotator's own order of time
(:func:`nemo_rpo.em.label_model.features.sequence`) and c the probability that the vote is right, taken from the *other*
votes on its pair, the score of annotator k is S_k = Σ_v (c_v - c̄_k) t_v. Without drift any order of an annotator's
votes is as likely as any other, which gives its variance exactly::

    V_k = Σ (c_v - c̄_k)² Σ (t_v - t̄_k)² / (n_k - 1)        z_k = S_k / √V_k

The crowd drifts where Σ z_k² is too large for a χ² (some get better, some worse) or Σ S_k / √ΣV_k too large for a
Gaussian (all together); the smaller p counts, times two.

The curve is that of the label model with skill a_k + u_k t (+ a bend, where the fit took ``sequence:middle``), whose
slopes have a Gaussian prior: annotators of few labels are drawn to the crowd's drift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.label_model.choose import Fitter
from nemo_rpo.em.label_model.coded_votes import FlatVotes, VoteFeatures, VoteTable, vote_table
from nemo_rpo.em.label_model.coefficients import logits
from nemo_rpo.em.label_model.features import SEQUENCE, SEQUENCE_MIDDLE, middle_of_sequence
from nemo_rpo.em.label_model.label_model_fit import LabelModelFit
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import Member
from nemo_rpo.em.votes import Votes

# Ends of the sequence: √3 either way.
_END = 3**0.5


class Drift(NamedTuple):
    """Reliability of every annotator over the own sequence.

    Attributes:
        p_value: of the crowd, small where somebody drifts.
        found: whether it is below ``settings.drift_level``.
        z: float64 [K], of each annotator's score, + better with time; 0 with fewer than ``drift_labels`` labels.
        surely: bool [K], drifts beyond chance, with all annotators looked at; nobody where ``found`` is False.
        place: float64 [T], from 0 (first label) to 1 (last).
        curve, low, high: float64 [K, T], P(label right) there, with its 95 % interval.
        change, change_low, change_high: float64 [K], last less first, with its 95 % interval.
    """

    p_value: float
    found: bool
    z: Tensor
    surely: Tensor
    place: Tensor
    curve: Tensor
    low: Tensor
    high: Tensor
    change: Tensor
    change_low: Tensor
    change_high: Tensor


@torch.no_grad()
def fit_drift(
    votes: Votes | FlatVotes,
    num_annotators: int,
    features: VoteFeatures,
    fit: LabelModelFit,
    settings: LabelModelSettings | None = None,
    points: int = 21,
) -> Drift | None:
    """Tests for drift and fits a curve to every annotator; None where ``features`` hold no ``sequence``.

    Args:
        votes, num_annotators, features: as given to :func:`fit_label_model`.
        fit: what it found.
        settings: level of the test, labels an annotator needs.
        points: T, of the curve.
    """
    settings = settings or LabelModelSettings()
    if SEQUENCE not in features.skill:
        return None
    table = vote_table(votes, num_annotators, features)
    bend = SEQUENCE_MIDDLE in fit.leaning
    still = [name for name in fit.member.names[1:] if name not in (SEQUENCE, SEQUENCE_MIDDLE)]
    place = table.design[:, table.names.index(SEQUENCE)].double()
    score, variance, z = _scores(table, _member(table, still, fit, settings), place, settings)
    p_value = _p_value(score, variance, z)
    found = p_value < settings.drift_level
    surely = _beyond_chance(z, settings.drift_level) if found else torch.zeros_like(z, dtype=torch.bool)
    moving = _member(table, [*still, SEQUENCE, *[SEQUENCE_MIDDLE] * bend], fit, settings)
    return Drift(p_value, found, z, surely, *_curves(moving, points))


def _member(table: VoteTable, names: list[str], fit: LabelModelFit, settings: LabelModelSettings) -> Member:
    """The member with these features, under the truths that ``fit`` knows; means of skill features are free."""
    prior = fit.member.prior
    free = [*table.names[1 : table.num_skill], *names]
    return Fitter(prior, free, settings).fit(table.select(names), prior.shares, [])


def _scores(
    table: VoteTable, member: Member, place: Tensor, settings: LabelModelSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """(S, V, z) of every annotator [K]; 0 where there are too few labels."""
    a, b = logits(table.select(member.names), member.theta)
    sign = table.sign()
    effect = F.logsigmoid(sign * (b + a)) - F.logsigmoid(sign * (b - a))
    rest = torch.logit(member.w, eps=1e-9)[table.pair] - effect
    rest = torch.where(member.prior.gold[table.pair] != 0, torch.logit(member.w, eps=1e-9)[table.pair], rest)
    right = torch.sigmoid(sign * rest)
    count = table.per_annotator(torch.ones_like(right))
    right, place = (x - (table.per_annotator(x) / count.clamp(min=1))[table.annotator] for x in (right, place))
    enough = count >= settings.drift_labels
    squares = table.per_annotator(right.square()) * table.per_annotator(place.square())
    variance = torch.where(enough, squares / (count - 1).clamp(min=1), 0.0)
    score = torch.where(enough, table.per_annotator(right * place), 0.0)
    return score, variance, score / variance.clamp(min=1e-12).sqrt()


def _p_value(score: Tensor, variance: Tensor, z: Tensor) -> float:
    tested = int((variance > 0).sum())
    if not tested:
        return 1.0
    half = torch.tensor(tested / 2, dtype=torch.float64)
    apart = torch.special.gammaincc(half, z.square().sum() / 2)
    together = 2 * torch.special.ndtr(-score.sum().abs() / variance.sum().sqrt())
    return min(1.0, 2 * torch.minimum(apart, together).item())


def _curves(member: Member, points: int) -> tuple[Tensor, ...]:
    """Errors of the coefficients are taken for independent: their columns are centred for every annotator."""
    t = torch.linspace(-_END, _END, points, dtype=torch.float64)
    columns = {SEQUENCE: t, SEQUENCE_MIDDLE: middle_of_sequence(t)}
    logit, variance = member.theta[:, :1], member.errors[:, :1].square()
    for j, name in enumerate(member.names):
        if name in columns:
            logit = logit + member.theta[:, j : j + 1] * columns[name]
            variance = variance + member.errors[:, j : j + 1].square() * columns[name].square()
    spread, curve = 1.96 * variance.sqrt(), torch.sigmoid(logit)
    j = member.names.index(SEQUENCE)
    at_ends, slope, error = logit[:, [0, -1]].mean(-1), member.theta[:, j], member.errors[:, j]
    slopes = slope + 1.96 * torch.stack((-error, error))
    change_low, change_high = torch.sigmoid(at_ends + _END * slopes) - torch.sigmoid(at_ends - _END * slopes)
    ends = torch.sigmoid(logit - spread), torch.sigmoid(logit + spread)
    return (t / _END + 1) / 2, curve, *ends, curve[:, -1] - curve[:, 0], change_low, change_high


def _beyond_chance(z: Tensor, rate: float) -> Tensor:
    """Benjamini and Hochberg's choice among two-sided tests, bool [K]: of those named a share ``rate`` is wrong."""
    p = torch.where(z == 0, 1.0, 2 * torch.special.ndtr(-z.abs()))
    order = p.argsort()
    allowed = rate * torch.arange(1, len(p) + 1, dtype=p.dtype) / max(1, int((z != 0).sum()))
    passed = (p[order] <= allowed).nonzero()
    chosen = torch.zeros_like(p, dtype=torch.bool)
    chosen[order[: int(passed.max()) + 1 if len(passed) else 0]] = True
    return chosen & (z != 0)
