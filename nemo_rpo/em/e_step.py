"""The E-step: how likely it is that the chosen answer of a pair is truly the better one."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rpo.em.votes import Votes


def posterior_logit(delta: Tensor, votes: Votes, logit_eta: Tensor, tau: float = 1.0) -> Tensor:
    r"""Log-odds that chosen is truly better, given the policy's margin and every label of the pair.

    Annotators err independently given the true preference, so the votes enter as a product likelihood, and the policy's
    induced probability p = σ(Δ) is the prior of the pair::

        w / (1-w)  =  σ(Δ/τ) / σ(-Δ/τ)  ·  Π_v (η_v / (1-η_v))^{s_v}
        logit w    =  Δ/τ + Σ_v s_v logit η_v

    For one label with s = +1 this is Eq. 4 of RE-PO, ``w = pη / (pη + (1-p)(1-η))``,
    in its stable form ``σ(Δ + logit η)``.

    Args:
        delta: Δ = L(l≻w) - L(w≻l) [P], any float dtype; detached here.
        votes: labels of the pairs [P, V].
        logit_eta: logit of the reliability of every annotator [K]; ±inf (an oracle) is allowed.
        tau: temperature of the link.

    Returns:
        [P], without gradient, in float32 or in ``delta``'s dtype where that is wider.

    >>> eta = torch.tensor([0.9, 0.6])
    >>> votes = Votes(torch.tensor([[0, 1]]), torch.tensor([[1, -1]]))
    >>> posterior_logit(torch.tensor([1.0]), votes, eta.logit())  # 1 + ln 9 - ln 1.5
    tensor([2.7918])
    """
    dtype = torch.promote_types(delta.dtype, torch.float32)
    return delta.detach().to(dtype) / tau + vote_evidence(votes, logit_eta, dtype)


def vote_evidence(votes: Votes, logit_eta: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Σ_v s_v logit η_v, the log-odds [P] that the labels alone give chosen; without gradient, in ``dtype``.

    Args:
        votes: labels of the pairs [P, V].
        logit_eta: logit of the reliability of every annotator [K]; ±inf (an oracle) is allowed.
    """
    sign = votes.sign.to(dtype)
    # The mask, and not the product with 0, drops an abstention: 0 · inf would be NaN for an oracle annotator.
    return torch.where(sign == 0, 0.0, sign * logit_eta.detach().to(dtype)[votes.annotator]).sum(-1)


def posterior(delta: Tensor, votes: Votes, logit_eta: Tensor, tau: float = 1.0) -> Tensor:
    """w = σ(:func:`posterior_logit`), the probability that chosen is truly better [P], detached, float32 or wider.

    At Δ = 0 and one label, w is the annotator's reliability, so the first RE-DPO step is cDPO's with ε = 1 - η₀:

    >>> posterior(torch.zeros(1), Votes.single(torch.tensor([0])), torch.tensor([0.9]).logit())
    tensor([0.9000])
    """
    return torch.sigmoid(posterior_logit(delta, votes, logit_eta, tau))
