"""How well the votes pin the reliabilities down: standard errors from the observed information."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.fit.empirical_bayes import log_tau_precision
from nemo_rpo.em.fit.unknown_link import error_under_unknown_link
from nemo_rpo.em.votes import Votes, chunks, with_finite_margin

# Above this many annotators the K × K matrix is not formed (32 MB, and an inversion of seconds, at the limit).
_DENSE_LIMIT = 2048
# Elements of the [pairs, V, V] products held at once.
_PRODUCT_ELEMENTS = 1 << 20
# A posterior of fewer labels than this, the prior's included, is taken for one of so many.
_FEWEST = 0.5


@torch.no_grad()
def standard_errors(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    settings: EMSettings,
    all_reduce: Callable[[Tensor], None] | None = None,
    scale_fitted: bool = False,
    known: Tensor | None = None,
) -> Tensor:
    r"""Standard error of every reliability, float64 [K]: 0.62 ± 0.05 rather than 0.62.

    The square roots of the diagonal of the inverse observed information at the EM's fixed point. By Louis' identity it
    is the information that known answers would give, less what is lost by their being latent, plus the prior's::

        I = diag(R/η² + W/(1-η)²) - Σ_i w_i (1-w_i) d_i d_iᵀ + diag(a/η² + b/(1-η)²),   d_iv = s_v / (η_v (1-η_v))

    with R, W the posterior sums of right and wrong labels. Annotators of one pair share its latent answer, so with
    several labels a pair I is not diagonal, and the errors are of η with all other reliabilities unknown too. Above
    2,048 annotators only the diagonal is formed: errors are then those for known co-annotators, somewhat too small.

    Where the temperature was fitted to the same votes, it is one more unknown. With m_i = Δ_i/τ, p_i = σ(m_i) and
    log τ as the last parameter, I grows by a row and a column::

        I[k, τ] = Σ_i w_i (1-w_i) m_i d_ik
        I[τ, τ] = Σ_i p_i (1-p_i) m_i² - (w_i - p_i) m_i - w_i (1-w_i) m_i²

    and the errors are those of η with τ unknown: with one label a pair I is an arrow, and its Schur complement in τ
    costs no more than the diagonal. A scale of the margins and a reliability are told apart by the curvature of the
    link alone, so with one annotator this can be most of the error. With one annotator and one label a pair even the
    shape of the link decides, so there the error is no smaller than that with a spread of scales unknown too
    (:mod:`nemo_rpo.em.fit.unknown_link`).

    What the policy's margins are off by otherwise is not in them.

    Args:
        delta, votes: margins [P] and labels [P, V] of this rank; pairs whose margin is not finite are left out.
        eta: fixed point of the EM [K].
        settings: ``prior`` and ``link_tau`` that the EM ran with.
        all_reduce: sums in place over the ranks that hold different pairs. One collective of 8 (2K + 1) bytes, or of
            8 (K² + K + 1) where pairs have several labels and the matrix is formed; of one annotator also those of
            :func:`~nemo_rpo.em.fit.unknown_link.error_under_unknown_link`.
        scale_fitted: τ was fitted to these votes.
        known: right and wrong answers [2, K] that counted beside the labels; None: none.
    """
    delta, votes = with_finite_margin(delta, votes)
    reduce = all_reduce or (lambda _: None)
    a, b = settings.prior if known is None else known + known.new_tensor(settings.prior).unsqueeze(1)
    eta = eta.double()
    size = eta.numel()
    dense = votes.sign.shape[-1] > 1 and size <= _DENSE_LIMIT
    cells = size**2 if dense else size
    packed = torch.zeros(cells + size + 1, dtype=torch.float64, device=eta.device)
    information, border, corner = packed[:cells], packed[cells:-1], packed[-1:]
    for margin, chunk in chunks(delta, votes):
        _add_chunk(information, border, corner, margin / settings.link_tau, chunk, eta, dense)
    reduce(packed)
    prior = a / eta**2 + b / (1 - eta) ** 2
    if not dense:
        variance = (information + prior).clamp(min=0).reciprocal()
        errors = _with_unknown_scale(variance, variance * border, border, corner, scale_fitted).sqrt()
        if size > 1 or not scale_fitted or votes.sign.shape[-1] > 1:
            return errors
        return errors.clamp(
            min=error_under_unknown_link(delta, votes, eta.item(), settings.prior, settings.link_tau, reduce)
        )
    matrix = information.view(size, -1) + torch.diag(prior)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:  # no maximum in every direction: reliabilities held by the clamp, or a flat likelihood without a prior
        return matrix.diagonal().clamp(min=0).rsqrt()
    solved = torch.cholesky_solve(border.unsqueeze(-1), factor).squeeze(-1)
    variance = torch.cholesky_inverse(factor).diagonal()
    return _with_unknown_scale(variance, solved, border, corner, scale_fitted).sqrt()


def skewed(error: Tensor, eta: Tensor) -> Tensor:
    r"""Errors [K] for intervals on the scale of logit η, from those of the curvature, ``error`` [K], at ``eta``.

    Of few labels the posterior of logit η is skewed: its mean lies beyond its mode, and it is wider than the curvature
    at the mode says. It is taken for the one that counts of known answers would give, Beta(α, β) with its mode and its
    curvature there; the error is the root mean square distance from the mode, exact where answers are known::

        α = S η        β = S (1-η)        S = η (1-η) / error²
        (η (1-η))² (ψ'(α) + ψ'(β) + (ψ(α) - ψ(β) - logit η)²)

    >>> skewed(torch.tensor([0.2, 0.01]), torch.tensor([0.8, 0.8]))
    tensor([0.2771, 0.0100])
    """
    variance = eta * (1 - eta)
    labels = (variance / error.square().clamp(min=1e-30)).clamp(min=_FEWEST)
    right, wrong = labels * eta, labels * (1 - eta)
    off = torch.digamma(right) - torch.digamma(wrong) - torch.logit(eta)
    return variance * (torch.polygamma(1, right) + torch.polygamma(1, wrong) + off.square()).sqrt()


def _with_unknown_scale(variance: Tensor, solved: Tensor, border: Tensor, corner: Tensor, fitted: bool) -> Tensor:
    """Variances [K] with log τ unknown too, from those with τ known: the inverse of a bordered matrix.

    ``solved``: I⁻¹ border. Where the Schur complement is not positive the votes do not hold log τ, and only its prior
    does, which is the one that the fit of the population gives it.
    """
    if not fitted:
        return variance
    schur = (corner - (border * solved).sum()).clamp(min=0) + log_tau_precision()
    return variance + solved**2 / schur


def _add_chunk(
    information: Tensor, border: Tensor, corner: Tensor, margin: Tensor, votes: Votes, eta: Tensor, dense: bool
) -> None:
    sign = votes.sign.double()
    logit_eta, eta_of_vote = torch.logit(eta)[votes.annotator], eta[votes.annotator]
    p = torch.sigmoid(margin)
    w = torch.sigmoid(margin + (sign * logit_eta).sum(-1))
    unsure = w * (1 - w)
    corner += votes.counted((p * (1 - p) - unsure) * margin**2 - (w - p) * margin).sum()
    w = w.unsqueeze(-1)
    right = torch.where(sign > 0, w, 1 - w)
    complete = votes.counted(sign.abs() * (right / eta_of_vote**2 + (1 - right) / (1 - eta_of_vote) ** 2))
    direction = sign / (eta_of_vote * (1 - eta_of_vote))
    across = votes.counted(unsure * margin).unsqueeze(-1) * direction
    border.index_add_(0, votes.annotator.flatten(), across.flatten())
    lost = votes.counted(unsure).unsqueeze(-1)
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
