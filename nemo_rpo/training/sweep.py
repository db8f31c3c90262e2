"""The exact full-batch EM over the training data at fixed weights, through the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em import (
    Evidence,
    RecordedReliability,
    SweepResult,
    Votes,
    evidence_of,
    standard_errors,
)
from nemo_rpo.em.fit.standard_error import skewed
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.parallel import is_last_stage
from nemo_rpo.megatron.step.collectives import broadcast_from_last_stage, sum_over_data_parallel
from nemo_rpo.megatron.step.em import COLLECTIVES
from nemo_rpo.megatron.step.forward import columns_on_device, votes_of


class Margins(NamedTuple):
    """Of every valid pair of this rank's batches: Δ fp32 ``[pairs]``, its votes, and ``pair`` int64 ``[pairs]``, its
    index in the data; empty before the last stage.
    """

    delta: Tensor
    votes: Votes
    pair: Tensor

    def everywhere(self, pairs: int) -> Tensor:
        """Δ of all ``pairs`` of the data, on every rank: fp32 ``[pairs]``, NaN for those that no rank has seen.

        One all-reduce of 8 bytes a pair over the data-parallel group and one broadcast over the pipeline group.
        """
        found = torch.zeros(2, pairs, device=self.delta.device)
        found[:, self.pair] = torch.stack((self.delta, torch.ones_like(self.delta)))
        if is_last_stage():
            sum_over_data_parallel(found)
        broadcast_from_last_stage(found)
        delta, seen = found
        return torch.where(seen > 0, delta, torch.nan)


@torch.no_grad()
def margins(model: MegatronGPTRPOModel, batches: Iterable[Batch]) -> Margins:
    """The margins of ``batches``, which hold their reference log-probs already, at the present weights.

    Collectives: the model's forward ones.
    """
    deltas, votes_there, pairs = [], [], []
    for batch in batches:
        for micro_batch, x in zip(batch, model.get_pair_batch(batch), strict=False):
            on_device = columns_on_device(micro_batch, model.device)
            valid, votes = on_device["valid"], votes_of(on_device)
            deltas.append(model.loss.terms(x).delta[valid])
            votes_there.append(votes.of(valid, model.device))
            pairs.append(on_device["pair_index"][valid])
    if not deltas:
        nothing = torch.zeros(0, device=model.device)
        return Margins(nothing, Votes(nothing.long().unsqueeze(-1), nothing.unsqueeze(-1)), nothing.long())
    return Margins(torch.cat(deltas), Votes.all_of(votes_there), torch.cat(pairs))


class Sweep(NamedTuple):
    """What a sweep found, the same on every rank: the EM's result, how sure it is of each η, and what it stood on."""

    result: SweepResult
    standard_error: Tensor
    evidence: Evidence


def sweep_reliabilities(model: MegatronGPTRPOModel, batches: Iterable[Batch]) -> Sweep:
    """Runs the estimator's full fit over ``batches`` (the whole training data, once) and makes its η the model's own.

    Where there is a label model it is refitted to the same margins, and its η and errors are the result's. Where a
    record is kept, these margins are the last sight of each pair.

    Collectives: the model's forward ones; over the data-parallel group those of the EM, of its standard errors and
    evidence; one broadcast of 8 (4K + 9) bytes from the last pipeline stage and one from rank 0; for the record and for
    the label model :meth:`Margins.everywhere`, and those of the latter's refit.
    """
    with model.evaluating():
        seen = margins(model, batches)
    delta, votes, _ = seen
    em = model.em
    if isinstance(em, RecordedReliability):
        em.pairs.see_again(seen.everywhere(em.pairs.num_pairs))
    k = em.num_annotators
    packed = torch.zeros(4 * k + 4 + len(Evidence._fields), dtype=torch.float64, device=model.device)
    if is_last_stage():
        found, fitted, scale_fitted = em.fit(delta, votes, COLLECTIVES)
        reduce = COLLECTIVES.all_reduce
        error = standard_errors(delta, votes, found.eta, fitted, reduce, scale_fitted, em.belief.known)
        error = skewed(error, found.eta)
        evidence = evidence_of(delta, votes, fitted, reduce)
        scalars = packed.new_tensor(
            [float(found.log_likelihood), found.iterations, found.converged, fitted.link_tau, *evidence]
        )
        packed.copy_(torch.cat((found.eta, found.counts, found.right_sums, error, scalars)))
    broadcast_from_last_stage(packed)
    COLLECTIVES.from_first(packed)  # tensor-parallel ranks have each run the EM for themselves
    (eta, counts, right_sums, standard_error), scalars = packed[: 4 * k].view(4, k), packed[4 * k :]
    _, iterations, converged, tau, *evidence = scalars.tolist()
    em.replace(eta)
    if em.label_model is not None:
        error = em.sweep_label_model(seen.everywhere(em.buffer.num_pairs).double() / tau)
        if error is not None:
            counts, right_sums, standard_error = em.label_counts, em.right_sums, error
            em.replace(em.eta)  # where a record is kept, it is on the trajectory
    result = SweepResult(em.eta, scalars[0], int(iterations), bool(converged), counts, right_sums)
    return Sweep(result, standard_error, Evidence(*evidence))
