"""Exact full-batch EM over the reliabilities with the policy held fixed: the iteration of RE-PO's Theorem 4.1."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.votes import Votes, chunks, exactly_summable, with_finite_margin

logger = logging.getLogger(__name__)


class SweepResult(NamedTuple):
    """What :func:`full_batch_em` found; the same on every rank.

    Attributes:
        eta: float64 [K], the reliabilities.
        log_likelihood: float64 [], observed log-posterior at ``eta`` (log-likelihood of the votes plus log-prior, up to
            the prior's constant).
        iterations: M-steps taken.
        converged: whether the last of them moved every reliability by less than ``sweep_tolerance``.
        counts: float64 [K], labels of each annotator.
        right_sums: float64 [K], their posteriors of being right at ``eta``, summed.
    """

    eta: Tensor
    log_likelihood: Tensor
    iterations: int
    converged: bool
    counts: Tensor
    right_sums: Tensor


@torch.no_grad()
def full_batch_em(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    settings: EMSettings,
    all_reduce: Callable[[Tensor], None] | None = None,
    known: Tensor | None = None,
) -> SweepResult:
    r"""Iterates E- and M-step over all pairs until the reliabilities stand still.

    ::

        E   w_i = σ(Δ_i/τ + Σ_v s_v logit η_v)
        M   η_k = (Σ right_k + a) / (n_k + a + b)

    with (a, b) = ``settings.prior``, pseudo-labels right and wrong. The fixed point is the posterior mode of logit η_k
    under a Beta(a, b) prior; on the scale of η itself the same number is the mode under Beta(a+1, b+1), and it is
    a log η + b log(1-η) that the objective adds per annotator. With no labels it is the mean of Beta(a, b), a/(a+b);
    when a = b = 0 an annotator without labels stays where it is. Clamp and floor keep the objective rising, since the
    M-step's own objective is concave in η. Labels that count for less than one (:class:`Votes`) weigh as much in all
    sums and in the likelihood, which is then a composite one.

    Args:
        delta: margins Δ [P] of this rank's pairs, any float dtype (computed in float64); a pair whose margin is NaN or
            infinite counts neither for nor against its annotators.
        votes: their labels [P, V]; pairs to be left out have sign 0 throughout.
        eta: start [K], the same on every rank.
        settings: prior, τ (inf: the margins are not believed), clamp, tolerance, bound on the iterations (0, or frozen
            reliabilities: only sums and likelihood at ``eta``).
        known: right and wrong answers [2, K] of each annotator that count beside the labels, as (a, b) do; None: none.
        all_reduce: sums a tensor in place over the ranks that hold different pairs. One collective of 8 K bytes for the
            counts, then one of 8 (K+1) bytes per iteration; none is differentiable. All ranks leave at the same
            iteration with the same bits in η, however the pairs are spread over them.
    """
    delta, votes = with_finite_margin(delta, votes)
    reduce = all_reduce or (lambda _: None)
    a, b = settings.prior if known is None else known + known.new_tensor(settings.prior).unsqueeze(1)
    eta = eta.double().clamp(*settings.eta_bounds)
    counts = torch.zeros_like(eta)
    for _, chunk in chunks(delta, votes):
        labels = exactly_summable(chunk.counted(chunk.sign.abs().double()))
        counts.index_add_(0, chunk.annotator.flatten(), labels.flatten())
    reduce(counts)

    def log_prior(eta: Tensor) -> Tensor:
        return (a * eta.log() + b * torch.log1p(-eta)).sum()

    right, likelihood = _e_step(delta, votes, eta, settings, reduce)
    objective = likelihood + log_prior(eta)
    converged, iterations = settings.freeze_eta, 0
    while not converged and iterations < settings.sweep_max_iterations:
        mode = (right + a) / (counts + a + b)
        moved = torch.where(counts + a + b > 0, mode, eta).clamp(*settings.eta_bounds)
        converged = (moved - eta).abs().max().item() < settings.sweep_tolerance
        right, likelihood = _e_step(delta, votes, moved, settings, reduce)
        risen = likelihood + log_prior(moved)
        _check_rise(objective.item(), risen.item(), iterations)
        eta, objective, iterations = moved, risen, iterations + 1
    if iterations and not converged:
        logger.warning(
            "the EM sweep stopped after %d iterations with reliabilities still moving; "
            "raise model.rpo.sweep_max_iterations",
            iterations,
        )
    return SweepResult(eta, objective, iterations, converged, counts, right)


def _e_step(
    delta: Tensor, votes: Votes, eta: Tensor, settings: EMSettings, reduce: Callable[[Tensor], None]
) -> tuple[Tensor, Tensor]:
    """Right posteriors per annotator [K] and the observed log-likelihood [], over all ranks."""
    log_eta, log_err = eta.log(), torch.log1p(-eta)
    packed = torch.zeros(eta.numel() + 1, dtype=torch.float64, device=eta.device)
    for margin, chunk in chunks(delta, votes):
        right, evidence = _e_step_of_chunk(margin / settings.link_tau, chunk, log_eta, log_err)
        packed.index_add_(0, chunk.annotator.flatten(), exactly_summable(right).flatten())
        packed[-1] += evidence.sum()
    reduce(packed)
    return packed[:-1], packed[-1]


def _e_step_of_chunk(margin: Tensor, votes: Votes, log_eta: Tensor, log_err: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior that each vote is right [p, V] (0 for a tie), and log-evidence of each pair [p], as they count."""
    says_chosen, says_rejected = votes.sign > 0, votes.sign < 0
    log_right, log_wrong = log_eta[votes.annotator], log_err[votes.annotator]
    if_chosen = torch.where(says_chosen, log_right, torch.where(says_rejected, log_wrong, 0.0)).sum(-1)
    if_rejected = torch.where(says_chosen, log_wrong, torch.where(says_rejected, log_right, 0.0)).sum(-1)
    w = torch.sigmoid(margin + if_chosen - if_rejected).unsqueeze(-1)
    right = torch.where(says_chosen, w, torch.where(says_rejected, 1 - w, 0.0))
    evidence = torch.logaddexp(F.logsigmoid(margin) + if_chosen, F.logsigmoid(-margin) + if_rejected)
    return votes.counted(right), votes.counted(evidence)


def _check_rise(before: float, after: float, iteration: int) -> None:
    # Sums of a million float64 terms agree to about twelve digits; a true fall means that E- and M-step disagree.
    if after < before - 1e-9 * (1 + abs(before)):
        logger.warning(
            "the EM objective fell from %.6f to %.6f at iteration %d; it never should", before, after, iteration
        )
