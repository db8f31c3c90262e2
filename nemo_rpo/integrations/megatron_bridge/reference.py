"""The frozen reference inside Megatron-Bridge's loop: one pass over a step's micro-batches, before the step.

The schedule runs stages in turn, so a reference cannot run inside the policy's pass; it runs when a step starts, over
the micro-batches that Bridge's loader is about to give. Shapes: P pairs of this rank's share of a global batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.errors import ReferencePolicyError
from nemo_rpo.integrations.megatron_bridge.model import PAIR_INDEX_ON_CPU, score
from nemo_rpo.megatron.frozen_policy import ReferencePolicy
from nemo_rpo.megatron.step.forward import REFERENCE_KEYS, MicroBatch, ModelInput, response_figures
from nemo_rpo.megatron.step.schedule import run_batch


class ReferenceLogprobs:
    """Log-probs of the reference for the pairs of one global batch, by the pair's index in the data.

    Kept for that batch alone: a replay of the step finds them again, and a run that is resumed computes what the
    unbroken one has.

    Args:
        policy: the frozen weights. swapped: they take the place of the policy's own, instead of having a model to
            themselves.
    """

    def __init__(self, policy: ReferencePolicy, swapped: bool) -> None:
        self.policy, self.swapped = policy, swapped
        self._place: dict[int, int] = {}
        self._logps: Tensor | None = None

    @torch.no_grad()
    def compute(self, model: list[torch.nn.Module], batches: list[MicroBatch]) -> None:
        """Runs the reference over this rank's micro-batches, in evaluation mode; ``model`` is left as it was.

        Collectives: the model's own; with the distributed optimizer's overlapped gathering of weights, that of the
        policy's first.
        """

        def forward_step(iterator: Iterator[MicroBatch], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
            return score(iterator, chunk, _receive)

        gathered = _weights_in_place(model) if self.swapped else contextlib.nullcontext()
        with gathered, self.policy.active(model) as frozen:
            found = run_batch(forward_step, batches, frozen, forward_only=True, collect_non_loss_data=True)
        index = [pair for batch in batches for pair in batch["pair_index"].tolist()]
        self._place = {pair: place for place, pair in enumerate(index)}
        self._logps = torch.cat(found, -1) if found else None  # [2, P]; before the last stage nothing is found

    def add_to(self, batch: MicroBatch) -> MicroBatch:
        """The micro-batch with the reference's log-probs of its pairs, [pairs] each.

        Raises:
            ReferencePolicyError: a pair that the reference has not seen.
        """
        pairs = batch[PAIR_INDEX_ON_CPU].tolist()
        if self._logps is None or not self._place.keys() >= set(pairs):
            raise ReferencePolicyError(
                "the data loader gave pairs that the reference has not seen: leave dataset.dataloader_type at 'single'"
            )
        place = torch.tensor([self._place[pair] for pair in pairs]).to(self._logps.device, non_blocking=True)
        return batch | dict(zip(REFERENCE_KEYS, self._logps[:, place], strict=True))


def _receive(logps: Tensor, x: ModelInput, batch: MicroBatch) -> Tensor:
    return torch.stack(response_figures({"logps": logps}, x)["logps"])


@contextlib.contextmanager
def _weights_in_place(model: list[torch.nn.Module]) -> Iterator[None]:
    """Inside the block the parameters are the policy's latest, and no hook gathers them again.

    With ``ddp.overlap_param_gather`` a step ends before the weights are there; the hooks of the next forward pass fetch
    them, and would overwrite a reference that has been put in their place.
    """
    hooked = [chunk for chunk in model if getattr(chunk, "remove_forward_pre_hook_handles", None)]
    for chunk in hooked:
        chunk.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        for chunk in hooked:
            chunk.enable_forward_pre_hook()
