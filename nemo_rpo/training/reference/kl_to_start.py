"""How far a policy has gone from the one that a loop began with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_rpo.megatron.batch.head_outputs import FrozenPredictions, HeadOutputs, HeadRequest
from nemo_rpo.megatron.frozen_policy import ReferencePolicy
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.step.collectives import reduce_to_all_ranks
from nemo_rpo.megatron.step.forward import MicroBatch, ModelInput
from nemo_rpo.megatron.step.schedule import forward_step, run_batch

KL, KL_ERROR = "kl_to_start", "kl_to_start_error"
_HIDDEN = "first_policy_hidden_states"


@dataclass(frozen=True)
class KLToStart:
    r"""KL(π ‖ π₀) on the responses of held-out pairs, in nats a response::

        mean over y of Σ_t Σ_v π(v | x, y_<t) log π(v | x, y_<t)/π₀(v | x, y_<t)

    The sum over the vocabulary is exact, so that no term is negative and few responses are enough. The responses are
    those of the data: where the policy writes others by now, they say too little of how far it has gone. In a loop the
    held-out responses are the last policy's own. (log π - log π₀ of samples of π, ``nemo-rpo evaluate --generate
    samples``, has the right mean and a far larger spread.)

    Attributes:
        model: holds π.
        first: π₀, with its head.
    """

    model: MegatronGPTRPOModel
    first: ReferencePolicy

    @torch.no_grad()
    def of(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The mean over the responses of all valid pairs of ``batches``, and its standard error; on every rank.

        Collectives: two forwards of the model a batch, the second with those of :func:`linear_kl`; a reduction of 24
        bytes.
        """
        sums = torch.zeros(3, dtype=torch.float64, device=self.model.device)
        for batch in batches:
            for found in self._of_batch(batch):
                sums += torch.stack((torch.ones_like(found), found, found**2)).sum(1)
        reduce_to_all_ranks(sums)
        count, total, squares = sums.tolist()
        mean = total / max(count, 1.0)
        variance = max(squares / max(count, 1.0) - mean**2, 0.0)
        return {KL: mean, KL_ERROR: math.sqrt(variance / max(count - 1, 1.0))}

    def _of_batch(self, batch: Batch) -> list[Tensor]:
        """Of the responses of each micro-batch's valid pairs, float64, on the last stage; empty on others."""
        device = self.model.device

        def keep(outputs: HeadOutputs, x: ModelInput, on_device: MicroBatch) -> MicroBatch:
            return {_HIDDEN: outputs["hidden"]}

        asks_hidden = forward_step(device, lambda on_device: HeadRequest(logps=False, hidden=True), keep)
        with self.model.evaluating(), self.first.active(self.model.model) as chunks:
            hidden = run_batch(asks_hidden, batch, chunks, forward_only=True, collect_non_loss_data=True)
        rows = [{**micro_batch, **found} for micro_batch, found in zip(batch, hidden, strict=True)] if hidden else batch

        def ask(on_device: MicroBatch) -> HeadRequest:
            known = on_device.get(_HIDDEN)  # present on the last stage only, which is also the only one that answers
            first = None if known is None else FrozenPredictions(known, self.first.head)
            return HeadRequest(logps=False, kl_from=first)

        def receive(outputs: HeadOutputs, x: ModelInput, on_device: MicroBatch) -> Tensor:
            sides = torch.stack(x.two(x.responses.sums(outputs["kl_from"])))
            return sides[:, on_device["valid"]].flatten().double()

        with self.model.evaluating():
            asks_kl = forward_step(device, ask, receive)
            return run_batch(asks_kl, rows, self.model.model, forward_only=True, collect_non_loss_data=True)


def too_far(stop_kl: float | None, metrics: dict[str, float]) -> str | None:
    """Why a run whose last validation measured ``metrics`` ends there, None if it does not."""
    measured = metrics.get(f"val_{KL}")
    if stop_kl is None or measured is None or measured <= stop_kl:
        return None
    return f"{KL} is {measured:.3g} nats a response, above model.rpo.stop_kl={stop_kl:g}"
