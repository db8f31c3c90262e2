"""The exact full-batch EM over the training data at fixed weights, through the engine."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nemo_rpo.em import SweepResult, Votes, full_batch_em
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
        for micro_batch, logprobs in zip(batch, model.get_logprob_batch(batch), strict=False):
            on_device = to_device(micro_batch, model.device)
            x = model.pair_logprobs(on_device, logprobs["chosen"], logprobs["rejected"])
            valid, votes = on_device["valid"], votes_of(on_device)
            deltas.append(model.loss.terms(x).delta[valid])
            annotators.append(votes.annotator[valid])
            signs.append(votes.sign[valid])
    if not deltas:
        nothing = torch.zeros(0, device=model.device)
        return nothing, Votes(nothing.long().unsqueeze(-1), nothing.unsqueeze(-1))
    return torch.cat(deltas), Votes(torch.cat(annotators), torch.cat(signs))


def sweep_reliabilities(model: MegatronGPTRPOModel, batches: Iterable[Batch]) -> SweepResult:
    """Runs :func:`full_batch_em` over ``batches`` (the whole training data, once) and makes its η the model's own.

    Collectives: the model's forward ones; the EM's over the data-parallel group; one broadcast of 8 (3K + 3) bytes from
    the last pipeline stage. Every rank ends with the same result.
    """
    with model.evaluating():
        delta, votes = margins(model, batches)
    k = model.em.num_annotators
    packed = torch.zeros(3 * k + 3, dtype=torch.float64, device=model.device)
    if is_last_stage():
        found = full_batch_em(delta, votes, model.em.eta, model.em.settings, sum_over_data_parallel)
        scalars = packed.new_tensor([float(found.log_likelihood), float(found.iterations), float(found.converged)])
        packed.copy_(torch.cat((found.eta, found.counts, found.right_sums, scalars)))
    broadcast_from_last_stage(packed)
    log_likelihood, iterations, converged = packed[3 * k :]
    model.em.replace(packed[:k])
    return SweepResult(
        eta=model.em.eta,
        log_likelihood=log_likelihood,
        iterations=int(iterations),
        converged=bool(converged),
        counts=packed[k : 2 * k],
        right_sums=packed[2 * k : 3 * k],
    )
