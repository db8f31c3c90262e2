r"""Does an annotator get better or worse over the own sequence of labels? A slope of the skill, and its curve.

With t ∈ [-√3, √3] the place of a vote in its annotator's own order of time (``sequence``,
:func:`nemo_rpo.em.label_model.features.sequence`) the skill is a_k + u_k t, u_k ~ N(μ, σ²): drift of the whole crowd
(μ: fatigue, or learning) and of single annotators (σ). No drift is u = 0. Whether it is one of the features of the fit
is decided by the marginal likelihood, like every feature; ``sequence:middle``, a bend, is tried beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.features import SEQUENCE, SEQUENCE_MIDDLE, middle_of_sequence
from nemo_rpo.em.label_model.label_model_fit import LabelModelFit

# Ends of the sequence: √3 either way.
_END = 3**0.5


class Drift(NamedTuple):
    """Reliability of every annotator over the own sequence.

    Attributes:
        place: float64 [T], from 0 (first label) to 1 (last).
        curve: float64 [K, T], P(label right) there.
        low, high: float64 [K, T], 95 % interval of the curve.
        change: float64 [K], last less first.
        change_low, change_high: float64 [K], 95 % interval of it.
        surely: bool [K], the annotator's drift is beyond chance, with all annotators looked at.
    """

    place: Tensor
    curve: Tensor
    low: Tensor
    high: Tensor
    change: Tensor
    change_low: Tensor
    change_high: Tensor
    surely: Tensor


def drift_of(fit: LabelModelFit, points: int = 21) -> Drift | None:
    """The drift that ``fit`` found; None where none is among its features.

    Errors of the coefficients are taken for independent: the columns are centred for every annotator. ``surely`` keeps
    the share of false ones among those named below 5 % (Benjamini and Hochberg).
    """
    found = [name for name in (SEQUENCE, SEQUENCE_MIDDLE) if name in fit.leaning]
    if not found:
        return None
    t = torch.linspace(-_END, _END, points, dtype=torch.float64)
    columns = {SEQUENCE: t, SEQUENCE_MIDDLE: middle_of_sequence(t)}
    logit, variance = fit.skill.unsqueeze(-1), fit.skill_error.square().unsqueeze(-1)
    strongest = torch.zeros_like(fit.skill)
    for name in found:
        value, error = fit.leaning[name]
        logit = logit + value.unsqueeze(-1) * columns[name]
        variance = variance + error.square().unsqueeze(-1) * columns[name].square()
        strongest = torch.maximum(strongest, value.abs() / error)
    spread = 1.96 * variance.sqrt()
    curve, zero = torch.sigmoid(logit), torch.zeros_like(fit.skill)
    slope, error = fit.leaning.get(SEQUENCE, (zero, zero))
    at_ends = logit[:, [0, -1]].mean(-1)
    slopes = slope + 1.96 * torch.stack((-error, error))
    change_low, change_high = torch.sigmoid(at_ends + _END * slopes) - torch.sigmoid(at_ends - _END * slopes)
    return Drift(
        (t / _END + 1) / 2,
        curve,
        torch.sigmoid(logit - spread),
        torch.sigmoid(logit + spread),
        curve[:, -1] - curve[:, 0],
        change_low,
        change_high,
        _beyond_chance(strongest),
    )


def _beyond_chance(z: Tensor, rate: float = 0.05) -> Tensor:
    """Benjamini and Hochberg's choice among two-sided tests, bool [K]."""
    p = 2 * torch.special.ndtr(-z)
    order = p.argsort()
    allowed = rate * torch.arange(1, len(p) + 1, dtype=p.dtype) / len(p)
    passed = (p[order] <= allowed).nonzero()
    last = int(passed.max()) + 1 if len(passed) else 0
    chosen = torch.zeros_like(p, dtype=torch.bool)
    chosen[order[:last]] = True
    return chosen
