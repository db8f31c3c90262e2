"""Warnings in plain words: situations in which reliabilities look like estimates and are not."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nemo_rpo.em.fit.evidence import Evidence

_ENOUGH_LABELS = 30  # below this an annotator may sit at the prior or the start for want of evidence
_MOVED = 0.01  # less is rounding in any report
_CERTAIN = 0.99
_SATURATED_SHARE = 0.05


class Warned(NamedTuple):
    """One warning: the guard that spoke, and what it says."""

    guard: str
    text: str


def warn_all(eta: Tensor, label_counts: Tensor, eta_init: float, evidence: Evidence | None = None) -> list[Warned]:
    """Every warning that applies, most serious first; an empty list is good news.

    Args:
        eta, label_counts: reliabilities and labels of the annotators [K].
        eta_init: where the reliabilities started.
        evidence: of the margins that the reliabilities were fitted to, where at hand.
    """
    found = {
        "lone_annotator_below_half": lone_annotator_below_half(eta, label_counts),
        "flipped_population": flipped_population(eta, label_counts),
        "stuck_at_start": stuck_at_start(eta, label_counts, eta_init),
        "overconfident_margins": evidence and overconfident_margins(evidence),
        "certain_annotators": certain_annotators(eta, label_counts),
        "saturated_posteriors": evidence and saturated_posteriors(evidence),
    }
    return [Warned(guard, text) for guard, text in found.items() if text]


def lone_annotator_below_half(eta: Tensor, label_counts: Tensor) -> str | None:
    """One annotator who is wrong more often than right: exactly as likely as a policy that learnt the opposite."""
    labelled = label_counts > 0
    if int(labelled.sum()) != 1 or eta[labelled].item() >= 0.5:
        return None
    return (
        f"the only annotator is estimated to be right {eta[labelled].item():.0%} of the time; labels of one annotator "
        "cannot tell this from a policy that prefers the wrong answers. Check it on pairs you know, or add an annotator"
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


def stuck_at_start(eta: Tensor, label_counts: Tensor, eta_init: float) -> str | None:
    """Annotators with many labels whose reliability never left its start: it was kept, not estimated."""
    enough = label_counts >= _ENOUGH_LABELS
    still = enough & ((eta - eta_init).abs() < _MOVED)
    if not enough.any() or still.sum() <= 0.5 * enough.sum():
        return None
    return (
        f"{int(still.sum())} of {int(enough.sum())} annotators with {_ENOUGH_LABELS} or more labels "
        f"{'is' if still.sum() == 1 else 'are'} within "
        f"{_MOVED} of the start {eta_init}: kept rather than learnt (margins still small, or few steps). Turn on a "
        "sweep, or train longer"
    )


def overconfident_margins(evidence: Evidence) -> str | None:
    """The policy agrees with the labels so strongly that perfect annotators explain them best.

    At fixed margins D = sΔ of the labels a reliability below 1 needs E[e^{-D}] > 1, and one above 0 needs E[e^{D}] > 1.
    """
    if not evidence.disagreement + 2 * evidence.disagreement_error <= 1:
        return None
    return (
        "the margins agree with the labels so strongly that no noise is left to estimate (mean exp(-Δ) is at most 1): "
        "reliabilities tend to 1. Trained pairs drift to their own labels; use margins from before training, or raise τ"
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


def saturated_posteriors(evidence: Evidence) -> str | None:
    """Almost no posterior lies between .05 and .95: the E-step takes decisions and no longer weighs."""
    undecided = evidence.undecided
    if not undecided < _SATURATED_SHARE:
        return None
    return (
        f"only {undecided:.1%} of the posteriors lie between .05 and .95; unless many labels a pair agree, the margins "
        "are too large for the link: raise model.rpo.link_tau"
    )
