"""Warnings in plain words: situations in which reliabilities look like estimates and are not.

How often each speaks on crowds where nothing is wrong, and how surely where something is: docs/estimators.md, measured
by ``benchmarks/guards.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.fit.evidence import Evidence
from nemo_rpo.em.fit.temperature import Temperature

_ENOUGH_LABELS = 30  # below this an annotator may sit at the prior or the start for want of evidence
_MOVED = 0.01  # less is rounding in any report
_KNOWN = 0.05  # standard error up to which η is known, wherever it lies
_CERTAIN = 0.99
_SATURATED_SHARE = 0.05
# Margins that deny fewer than this many of a hundred labels' odds say nothing either way.
_LEAST_EFFECT = 0.02
_ENOUGH_HELD_OUT = 100
_HARDLY_BETTER = 0.55  # of held-out labels right: a policy above this has learnt something worth a voice
_MEMORISED = 0.05  # by this much more of its own labels than of held-out ones
_Z = 1.645  # one-sided 5 %


class Warned(NamedTuple):
    """One warning: the guard that spoke, and what it says."""

    guard: str
    text: str


class Agreed(NamedTuple):
    """With how many of how many labels a policy agrees."""

    right: float
    total: float

    @property
    def share(self) -> float:
        """nan without labels."""
        return self.right / self.total if self.total else math.nan


def warn_all(
    eta: Tensor,
    label_counts: Tensor,
    eta_init: float | Tensor,
    evidence: Evidence | None = None,
    standard_error: Tensor | None = None,
    temperature: Temperature | None = None,
    held_out: Agreed | None = None,
) -> list[Warned]:
    """Every warning that applies, most serious first; an empty list is good news.

    Args:
        eta, label_counts: reliabilities and labels of the annotators [K].
        eta_init: where the reliabilities started; [K] where each had a start of his own.
        evidence: of the margins that the reliabilities were fitted to, where at hand.
        standard_error: of the reliabilities [K], nan where nothing was fitted; None: of none.
        temperature: of a fit to margins from before training, where there was one.
        held_out: the policy on labels (gold ones, where there are some) that it was not trained on.
    """
    unknown = torch.full_like(eta, math.nan) if standard_error is None else standard_error
    found = {
        "policy_at_chance": held_out and policy_at_chance(held_out),
        "policy_without_voice": temperature and policy_without_voice(temperature),
        "lone_annotator_below_half": lone_annotator_below_half(eta, label_counts),
        "lone_annotator_at_floor": lone_annotator_at_floor(eta, label_counts),
        "flipped_population": flipped_population(eta, label_counts),
        "stuck_at_start": stuck_at_start(eta, label_counts, eta_init, unknown),
        "overconfident_margins": evidence and overconfident_margins(evidence),
        "memorised_margins": evidence and held_out and memorised_margins(evidence, held_out),
        "certain_annotators": certain_annotators(eta, label_counts),
        "saturated_posteriors": evidence and saturated_posteriors(evidence, temperature),
    }
    return [Warned(guard, text) for guard, text in found.items() if text]


def policy_at_chance(held_out: Agreed) -> str | None:
    """On held-out labels the policy knows nothing of what the labels are about.

    >>> policy_at_chance(Agreed(210, 400))[:60]
    'the policy agrees with 52% of 400 held-out labels, no better'
    >>> policy_at_chance(Agreed(250, 400))
    """
    if held_out.total < _ENOUGH_HELD_OUT:
        return None
    better = (held_out.right - held_out.total / 2) / math.sqrt(held_out.total / 4)
    if held_out.share >= _HARDLY_BETTER or better >= _Z:
        return None
    return (
        f"the policy agrees with {held_out.share:.0%} of {held_out.total:.0f} held-out labels, no better than chance: "
        "it has not learnt what they are about. Do not use it; a lower learning rate or a larger model may help, and "
        "what is said of labels and annotators should rest on their votes"
    )


def policy_without_voice(temperature: Temperature) -> str | None:
    """Before it was trained on a pair the policy knew nothing of its labels. It may have learnt since."""
    if not temperature.no_better_than_chance:
        return None
    return (
        "the policy's margins, taken before it was trained on a pair, make the labels no more likely than chance does "
        f"({round(temperature.gain, 1) + 0.0:.1f} nats for all of them): it has no voice in the posteriors, which rest "
        "on the votes alone. A lower learning rate, more data or a larger model may change that"
    )


def lone_annotator_below_half(eta: Tensor, label_counts: Tensor) -> str | None:
    """One annotator who is wrong more often than right: exactly as likely as a policy that learnt the opposite."""
    labelled = label_counts > 0
    if int(labelled.sum()) != 1 or eta[labelled].item() >= 0.5:
        return None
    return (
        f"the only annotator is estimated to be right {eta[labelled].item():.0%} of the time; labels of one annotator "
        "cannot tell this from a policy that prefers the wrong answers. Check it on pairs you know, or add an annotator"
    )


def lone_annotator_at_floor(eta: Tensor, label_counts: Tensor) -> str | None:
    """One annotator at ½, as low as one alone is let go: labels and policy agree no more often than not."""
    labelled = label_counts > 0
    if int(labelled.sum()) != 1 or not 0.5 <= eta[labelled].item() < 0.5 + _MOVED:
        return None
    return (
        "the only annotator (labels without ids) is estimated to be right half of the time, the least that is believed "
        "of one alone: either the labels are noise, or the policy has learnt the opposite of what they say. Check some "
        "on pairs you know, and give them as gold labels"
    )


def flipped_population(eta: Tensor, label_counts: Tensor) -> str | None:
    """Most labels come from annotators below ½: rather the world is upside down than the crowd."""
    labels = label_counts.sum()
    below = (label_counts * (eta < 0.5)).sum() / labels.clamp(min=1)
    if int((label_counts > 0).sum()) < 2 or below <= 0.5:
        return None
    return (
        f"annotators below one half gave {below.item():.0%} of the labels; the estimates may be upside down (all "
        "answers and all reliabilities turned round fit as well). Check them on pairs you know"
    )


def stuck_at_start(eta: Tensor, label_counts: Tensor, eta_init: float | Tensor, standard_error: Tensor) -> str | None:
    """Annotators with many labels whose reliability never left its start, and is not known to be there: it was kept,
    not estimated.

    ``standard_error`` [K] is nan where nothing was fitted. An annotator who is as reliable as the start says, and known
    to be, is an estimate like any other.
    """
    enough = label_counts >= _ENOUGH_LABELS
    still = enough & ((eta - eta_init).abs() < _MOVED) & ~(standard_error <= _KNOWN)
    if not enough.any() or still.sum() <= 0.5 * enough.sum():
        return None
    start = "their start" if isinstance(eta_init, Tensor) else f"the start {eta_init}"
    return (
        f"{int(still.sum())} of {int(enough.sum())} annotators with {_ENOUGH_LABELS} or more labels "
        f"{'is' if still.sum() == 1 else 'are'} within "
        f"{_MOVED} of {start}: kept rather than learnt (margins still small, or few steps). Turn on a "
        "sweep, or train longer"
    )


def overconfident_margins(evidence: Evidence) -> str | None:
    """The policy agrees with labels that are alone on their pair so strongly that perfect annotators explain them best.

    At fixed margins D = sΔ of such labels a reliability below 1 needs E[e^{-D}] > 1, and one above 0 needs E[e^{D}] >
    1. Labels that share a pair are judged by each other too, and have no such condition.
    """
    most = min(1.0 - 2 * evidence.disagreement_error, 1.0 - _LEAST_EFFECT)
    if not evidence.disagreement <= most:
        return None
    return (
        "the margins agree with the labels so strongly that no noise is left to estimate (mean exp(-Δ) is at most 1): "
        "reliabilities tend to 1. Trained pairs drift to their own labels; use margins from before training, or raise τ"
    )


def memorised_margins(evidence: Evidence, held_out: Agreed) -> str | None:
    """The policy agrees with the labels that it was trained on more often than with held-out ones.

    Held-out labels cleaner than the training's hide it; noisier ones look like it.
    """
    own = Agreed(evidence.agreement * evidence.labels, evidence.labels)
    if min(own.total, held_out.total) < _ENOUGH_HELD_OUT:
        return None
    noise = math.sqrt(sum(max(a.share * (1 - a.share), 1e-4) / a.total for a in (own, held_out)))
    if own.share - held_out.share < max(_MEMORISED, 2 * _Z * noise):
        return None
    return (
        f"the policy agrees with {own.share:.0%} of the labels that it was trained on and with {held_out.share:.0%} of "
        "held-out ones: it remembers them, and reliabilities from these margins are too high and too sure. Use margins "
        "from before training (estimator: buffer, without a sweep), or fewer epochs"
    )


def certain_annotators(eta: Tensor, label_counts: Tensor) -> str | None:
    """Nearly all labels come from annotators that are estimated to be perfect."""
    certain = (label_counts * (eta > _CERTAIN)).sum() / label_counts.sum().clamp(min=1)
    if certain <= 0.9:
        return None
    return (
        f"annotators above {_CERTAIN} gave {certain.item():.0%} of the labels; human labels are rarely that clean, and "
        "an over-confident policy ends here as well"
    )


def saturated_posteriors(evidence: Evidence, temperature: Temperature | None = None) -> str | None:
    """Almost no margin leaves anything open: the E-step takes decisions and no longer weighs. A scale that was fitted
    to margins from before training is what they are worth, however large.
    """
    if temperature is not None and temperature.identified:
        return None
    undecided = evidence.undecided
    if not undecided < _SATURATED_SHARE:
        return None
    return (
        f"only {undecided:.1%} of the margins leave a posterior between .05 and .95: they are too large for the link; "
        "raise model.rpo.link_tau"
    )
