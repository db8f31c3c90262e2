"""How well the votes pin the reliabilities down: standard errors from the observed information."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.votes import Votes, chunks, with_finite_margin

# Above this many annotators the K × K matrix is not formed (32 MB, and an inversion of seconds, at the limit).
_DENSE_LIMIT = 2048
# Elements of the [pairs, V, V] products held at once.
_PRODUCT_ELEMENTS = 1 << 20


@torch.no_grad()
def standard_errors(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    settings: EMSettings,
    all_reduce: Callable[[Tensor], None] | None = None,
) -> Tensor:
    r"""Standard error of every reliability, float64 [K]: 0.62 ± 0.05 rather than 0.62.

    The square roots of the diagonal of the inverse observed information at the EM's fixed point. By Louis' identity it
    is the information that known answers would give, less what is lost by their being latent, plus the prior's::

        I = diag(R/η² + W/(1-η)²) - Σ_i w_i (1-w_i) d_i d_iᵀ + diag(a/η² + b/(1-η)²),   d_iv = s_v / (η_v (1-η_v))

    with R, W the posterior sums of right and wrong labels. Annotators of one pair share its latent answer, so with
    several labels a pair I is not diagonal, and the errors are of η with all other reliabilities unknown too. Above
    2,048 annotators only the diagonal is formed: errors are then those for known co-annotators, somewhat too small.
    What the policy's margins are off by is not in them.

    Args:
        delta, votes: margins [P] and labels [P, V] of this rank; pairs whose margin is not finite are left out.
        eta: fixed point of the EM [K].
        settings: ``prior`` and ``link_tau`` that the EM ran with.
        all_reduce: sums in place over the ranks that hold different pairs. One collective of 8 K bytes, or of 8 K²
            where pairs have several labels and the matrix is formed.
    """
    delta, votes = with_finite_margin(delta, votes)
    reduce = all_reduce or (lambda _: None)
    a, b = settings.prior
    eta = eta.double()
    dense = votes.sign.shape[-1] > 1 and eta.numel() <= _DENSE_LIMIT
    information = torch.zeros(eta.numel() ** 2 if dense else eta.numel(), dtype=torch.float64, device=eta.device)
    for margin, chunk in chunks(delta, votes):
        _add_chunk(information, margin / settings.link_tau, chunk, eta, dense)
    reduce(information)
    prior = a / eta**2 + b / (1 - eta) ** 2
    if not dense:
        return (information + prior).clamp(min=0).rsqrt()
    matrix = information.view(eta.numel(), -1) + torch.diag(prior)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:  # no maximum in every direction: reliabilities held by the clamp, or a flat likelihood without a prior
        return matrix.diagonal().clamp(min=0).rsqrt()
    return torch.cholesky_inverse(factor).diagonal().sqrt()


def _add_chunk(information: Tensor, margin: Tensor, votes: Votes, eta: Tensor, dense: bool) -> None:
    sign = votes.sign.double()
    logit_eta, eta_of_vote = torch.logit(eta)[votes.annotator], eta[votes.annotator]
    w = torch.sigmoid(margin + (sign * logit_eta).sum(-1)).unsqueeze(-1)
    right = torch.where(sign > 0, w, 1 - w)
    complete = votes.counted(sign.abs() * (right / eta_of_vote**2 + (1 - right) / (1 - eta_of_vote) ** 2))
    direction = sign / (eta_of_vote * (1 - eta_of_vote))
    lost = votes.counted(w * (1 - w))
    if not dense:
        information.index_add_(0, votes.annotator.flatten(), (complete - lost * direction**2).flatten())
        return
    size = eta.numel()
    information.index_add_(0, votes.annotator.flatten() * (size + 1), complete.flatten())
    pairs = max(1, _PRODUCT_ELEMENTS // sign.shape[-1] ** 2)
    pieces = zip(votes.annotator.split(pairs), direction.split(pairs), lost.split(pairs), strict=True)
    for annotator, d, share in pieces:
        cell = annotator.unsqueeze(-1) * size + annotator.unsqueeze(-2)
        product = share.unsqueeze(-1) * d.unsqueeze(-1) * d.unsqueeze(-2)
        information.index_add_(0, cell.flatten(), -product.flatten())
