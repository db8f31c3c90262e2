"""The M-step of the policy: the loss of a pair whose label is right with probability w, or with evidence for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.votes import Votes

if TYPE_CHECKING:
    from nemo_rpo.losses import LossTerms


def robust_loss(terms: LossTerms, w: Tensor, objective: Literal["induced", "weighted"] = "induced") -> Tensor:
    r"""The robustified loss of each pair, unreduced [P], float32 or wider.

    ::

        induced   -w log σ(Δ) - (1-w) log σ(-Δ),  Δ = L(l≻w) - L(w≻l)     (RE-PO, Eq. 5)
        weighted   w L(w≻l) + (1-w) L(l≻w)

    They differ by log Z, Z = e^{-L(w≻l)} + e^{-L(l≻w)}: the same where Z ≡ 1 (``terms.exact``, the DPO family), while
    e.g. IPO keeps its square only under ``weighted``. An anchor (a term that is no preference, such as CPO's NLL)
    stands outside the induced probability in both, and is weighted by the posterior of the side it belongs to.

    With w detached, d(induced)/dΔ = σ(Δ) - w, exactly the gradient of the observed likelihood (Fisher's identity).

    Args:
        terms: both directions of the loss, [P] each.
        w: posterior that chosen is truly better [P]; its gradient is not followed.
        objective: ``induced`` or ``weighted``.
    """
    w = w.detach()
    chosen, rejected = _at_least_float32(terms.chosen), _at_least_float32(terms.rejected)
    if objective == "induced" and not terms.exact:
        delta = _at_least_float32(terms.delta)
        chosen, rejected = -F.logsigmoid(delta), -F.logsigmoid(-delta)
    loss = _weighted(w, chosen) + _weighted(1 - w, rejected)
    return _with_anchors(loss, terms, w)


def bounded_loss(terms: LossTerms, q: Tensor, sharpness: Tensor, w: Tensor) -> Tensor:
    r"""A loss of each pair, unreduced [P], float32 or wider, that no label can pull at for ever::

        log 2 - (2q - 1) tanh(uΔ/2) / u

    Up to a constant it is the expected share of wrong choices, q σ(-uΔ) + (1-q) σ(uΔ), over u/2. A loss whose two sides
    add up to a constant has the same minimum whatever share of the labels is flipped at random (Ghosh, Kumar and
    Sastry, AAAI 2017), so with one annotator nobody has to know that share; the induced loss needs it, and one label a
    pair does not tell it from the scale of the margins. At Δ = 0 it has the gradient of the induced loss there, ½ - q,
    and like that it lets go of pairs on which policy and label disagree for good; it is what the induced loss tends to
    as the labels' log-odds go to 0. u → 0 is the mean over all labels, linear in Δ. An importance of the pair that is
    no part of the link (``terms.exact``: ORPO's λ) multiplies it.

    Args:
        terms: of the base loss.
        q: probability that chosen is better by all that is known but the policy, [P].
        sharpness: u, []: how soon a margin counts as large (:meth:`nemo_rpo.em.voice.Voice.sharpness`).
        w: posterior that chosen is better [P], the weight of anchors.
    """
    delta = _at_least_float32(terms.delta)
    q, u, w = q.detach().to(delta.dtype), sharpness.to(delta.dtype), w.detach()
    loss = math.log(2) - (2 * q - 1) * torch.tanh(u * delta / 2) / u
    return _with_anchors(_importance(terms, delta) * loss, terms, w)


def _importance(terms: LossTerms, delta: Tensor) -> Tensor | float:
    """What an exact loss multiplies -log σ(±Δ) by, [P] without gradient."""
    if not terms.exact:
        return 1.0
    both = (_at_least_float32(terms.chosen) + _at_least_float32(terms.rejected)).detach()
    ratio = both / -(F.logsigmoid(delta) + F.logsigmoid(-delta)).detach()
    return torch.where(ratio.isfinite(), ratio, 1.0)


def _with_anchors(loss: Tensor, terms: LossTerms, w: Tensor) -> Tensor:
    if terms.anchor_chosen is not None:
        loss = loss + _weighted(w, _at_least_float32(terms.anchor_chosen))
    if terms.anchor_rejected is not None:
        loss = loss + _weighted(1 - w, _at_least_float32(terms.anchor_rejected))
    return loss


def label_loss(delta: Tensor, votes: Votes) -> Tensor:
    """−s log σ(Δ) − (1−s) log σ(−Δ) [P]: the log loss of the labels as recorded, whatever an EM thinks of them.

    What a policy is measured by on held-out pairs: under a loss that weighs labels by its own w, a policy that denies
    the labels looks good to itself.

    Args:
        delta: Δ [P]. votes: the labels; s is the share of a pair's signed ones that say chosen.
    """
    delta, share = _at_least_float32(delta), votes.share()
    return _weighted(share, -F.logsigmoid(delta)) + _weighted(1 - share, -F.logsigmoid(-delta))


def agreement(delta: Tensor, better: Tensor) -> Tensor:
    """How right margins [P] are about which response is ``better`` [P] (+1 chosen, −1 rejected, 0 neither): 1 or 0, and
    ½ where either takes no side, as all margins at the first step do.

    >>> agreement(torch.tensor([0.3, -0.3, 0.0, 0.3]), torch.tensor([1, 1, 1, 0]))
    tensor([1.0000, 0.0000, 0.5000, 0.5000])
    """
    return 0.5 + 0.5 * torch.sign(delta) * better


def _weighted(weight: Tensor, loss: Tensor) -> Tensor:
    # A side that is ruled out must not speak, even where its loss has overflowed: 0 · inf is NaN, forward and backward.
    return weight * torch.where(weight > 0, loss, 0.0)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
