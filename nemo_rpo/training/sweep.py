"""The exact full-batch EM over the training data at fixed weights, through the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em import Evidence, SweepResult, Votes, evidence_of, full_batch_em, standard_errors
from nemo_rpo.megatron.forward import to_device, votes_of
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.parallel import is_last_stage
from nemo_rpo.megatron.statistics import broadcast_from_last_stage, sum_over_data_parallel


@torch.no_grad()
def margins(model: MegatronGPTRPOModel, batches: Iterable[Batch]) -> tuple[Tensor, Votes]:
    """Δ of every valid pair of this rank's batches, fp32 ``[pairs]``, and their votes; empty before the last stage.

    The batches hold their reference log-probs already. Collectives: the model's forward ones.
    """
    deltas, annotators, signs = [], [], []
    for batch in batches:
        for micro_batch, x in zip(batch, model.get_pair_batch(batch), strict=False):
            on_device = to_device(micro_batch, model.device)
            valid, votes = on_device["valid"], votes_of(on_device)
            deltas.append(model.loss.terms(x).delta[valid])
            annotators.append(votes.annotator[valid])
            signs.append(votes.sign[valid])
    if not deltas:
        nothing = torch.zeros(0, device=model.device)
        return nothing, Votes(nothing.long().unsqueeze(-1), nothing.unsqueeze(-1))
    return torch.cat(deltas), Votes(torch.cat(annotators), torch.cat(signs))


class Sweep(NamedTuple):
    """What a sweep found, the same on every rank: the EM's result, how sure it is of each η, and what it stood on."""

    result: SweepResult
    standard_error: Tensor
    evidence: Evidence


def sweep_reliabilities(model: MegatronGPTRPOModel, batches: Iterable[Batch]) -> Sweep:
    """Runs :func:`full_batch_em` over ``batches`` (the whole training data, once) and makes its η the model's own.

    Collectives: the model's forward ones; over the data-parallel group those of the EM, of its standard errors and
    evidence; one broadcast of 8 (4K + 6) bytes from the last pipeline stage.
    """
    with model.evaluating():
        delta, votes = margins(model, batches)
    k = model.em.num_annotators
    packed = torch.zeros(4 * k + 3 + len(Evidence._fields), dtype=torch.float64, device=model.device)
    if is_last_stage():
        found = full_batch_em(delta, votes, model.em.eta, model.em.settings, sum_over_data_parallel)
        known = delta, votes, found.eta, model.em.settings, sum_over_data_parallel
        error, evidence = standard_errors(*known), evidence_of(*known)
        scalars = packed.new_tensor([float(found.log_likelihood), found.iterations, found.converged, *evidence])
        packed.copy_(torch.cat((found.eta, found.counts, found.right_sums, error, scalars)))
    broadcast_from_last_stage(packed)
    (eta, counts, right_sums, standard_error), scalars = packed[: 4 * k].view(4, k), packed[4 * k :]
    _, iterations, converged, *evidence = scalars.tolist()
    model.em.replace(eta)
    result = SweepResult(model.em.eta, scalars[0], int(iterations), bool(converged), counts, right_sums)
    return Sweep(result, standard_error, Evidence(*evidence))
