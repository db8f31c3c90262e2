"""The M-step of the policy: the loss of a pair whose label is right with probability w."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.em_settings import Objective
from nemo_rpo.em.votes import Votes

if TYPE_CHECKING:
    from nemo_rpo.losses import LossTerms


def robust_loss(terms: LossTerms, w: Tensor, objective: Objective = "induced") -> Tensor:
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
