"""Warnings in plain words: situations in which reliabilities look like estimates and are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemo_rpo.em.votes import Votes

_ENOUGH_LABELS = 30  # below this an annotator may sit at the prior or the start for want of evidence
_MOVED = 0.01  # less is rounding in any report
_CERTAIN = 0.99
_SATURATED_SHARE = 0.05


def warn_all(
    eta: Tensor,
    label_counts: Tensor,
    eta_init: float,
    delta: Tensor | None = None,
    votes: Votes | None = None,
    w: Tensor | None = None,
) -> list[str]:
    """Every warning that applies, most serious first; an empty list is good news.

    Args:
        eta, label_counts: reliabilities and labels of the annotators [K].
        eta_init: where the reliabilities started.
        delta, votes: margins Δ/τ [P] and labels [P, V] of the pairs, where at hand.
        w: posteriors of pairs [P], where at hand.
    """
    found = [
        lone_annotator_below_half(eta, label_counts),
        flipped_population(eta, label_counts),
        stuck_at_start(eta, label_counts, eta_init),
        overconfident_margins(delta, votes) if delta is not None and votes is not None else None,
        certain_annotators(eta, label_counts),
        saturated_posteriors(w) if w is not None else None,
    ]
    return [warning for warning in found if warning]


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
        f"{int(still.sum())} of {int(enough.sum())} annotators with {_ENOUGH_LABELS} or more labels are within "
        f"{_MOVED} of the start {eta_init}: kept rather than learnt (margins still small, or few steps). Turn on a "
        "sweep, or train longer"
    )


def overconfident_margins(delta: Tensor, votes: Votes) -> str | None:
    """The policy agrees with the labels so strongly that perfect annotators explain them best.

    At fixed margins D = sΔ of the labels a reliability below 1 needs E[e^{-D}] > 1, and one above 0 needs E[e^{D}] > 1.
    """
    signed = votes.sign != 0
    agreed = (votes.sign.double() * delta.double().unsqueeze(-1))[signed]
    if not agreed.numel() or torch.logsumexp(-agreed, 0).item() > math.log(agreed.numel()):
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


def saturated_posteriors(w: Tensor) -> str | None:
    """Almost no posterior lies between .05 and .95: the E-step takes decisions and no longer weighs."""
    undecided = ((w > 0.05) & (w < 0.95)).double().mean().item()
    if undecided >= _SATURATED_SHARE:
        return None
    return (
        f"only {undecided:.1%} of the posteriors lie between .05 and .95; unless many labels a pair agree, the margins "
        "are too large for the link: raise model.rpo.link_tau"
    )
