"""Reference log-probs computed once and kept (:mod:`nemo_rpo.training.reference.file`), keyed by what each pair holds,
never by where it stands: reordered, filtered or differently batched data finds its log-probs again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.step.forward import REFERENCE_KEYS, MicroBatch, model_input
from nemo_rpo.training.reference.file import Logprobs


class CachedReference:
    """Puts the log-probs of the reference into batches of the data set whose order they are in."""

    def __init__(self, logprobs: Logprobs) -> None:
        self.chosen, self.rejected = torch.from_numpy(logprobs.chosen), torch.from_numpy(logprobs.rejected)

    def add_ref_policy_logprobs(self, batch: Batch) -> None:
        """Puts the pairs' log-probs into the batch, in place. No collective."""
        for micro_batch in batch:
            rows = micro_batch["pair_index"].clamp(min=0)  # rows that only fill up a batch have index -1
            micro_batch.update(zip(REFERENCE_KEYS, (self.chosen[rows], self.rejected[rows]), strict=True))


@torch.no_grad()
def compute(
    model: MegatronGPTRPOModel, batches: Iterable[Batch], lengths: np.ndarray, per_token: bool = False
) -> Logprobs:
    """Log-probs under the model's present weights, which must be the reference's, and in its precision, of all pairs
    of a data set, each of which ``batches`` hold once. ``lengths [n, 2]`` are their scored tokens (chosen, rejected).

    Draws no random number. Collectives: the model's forward ones, and one all-reduce over the world, of 8 bytes a pair,
    and, ``per_token``, of 4 bytes a response token; every rank ends with all of them.
    """
    found = torch.zeros(2, len(lengths), device=model.device)
    ends = torch.from_numpy(lengths).flatten().cumsum(0)
    tokens = torch.zeros(int(ends[-1]) if per_token else 0, device=model.device)
    with model.evaluating(), model.precision.switched(model.frozen_precision):
        for batch in batches:
            for micro_batch, logprobs in zip(batch, model.get_logprob_batch(batch), strict=False):
                if parallel_state.get_tensor_and_context_parallel_rank():
                    continue  # the first of the ranks that share these pairs has the same
                valid = micro_batch["valid"]
                rows = micro_batch["pair_index"][valid].to(model.device)
                found[:, rows] = torch.stack((logprobs["chosen"], logprobs["rejected"]))[:, valid.to(model.device)]
                if per_token:
                    places, source = (tensor.to(model.device) for tensor in _places_of_tokens(micro_batch, ends))
                    tokens[places] = logprobs["tokens"][source]
    dist.all_reduce(found)
    dist.all_reduce(tokens)
    chosen, rejected = found.cpu().numpy()
    return Logprobs(chosen, rejected, tokens.cpu().numpy() if per_token else None)


def _places_of_tokens(micro_batch: MicroBatch, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Of every token of a valid pair's responses, where it stands among those of the data set, and where among the
    micro-batch's response tokens; a response of a ranking is one of several pairs.

    Args:
        ends: int64 ``[2n]``, where each response of the data set ends: the chosen and the rejected one of each pair.
    """
    x, valid = model_input(micro_batch), micro_batch["valid"]
    end_here = torch.cat(x.two(x.responses.lengths_on_all_ranks().cumsum(0)))
    lengths = torch.cat((micro_batch["chosen_length"], micro_batch["rejected_length"]))
    end_there = ends[torch.cat([2 * micro_batch["pair_index"] + side for side in (0, 1)])]
    real = torch.cat((valid, valid))
    counts = lengths[real]
    to_end = counts.cumsum(0).repeat_interleave(counts) - torch.arange(int(counts.sum()))
    return tuple(end[real].repeat_interleave(counts) - to_end for end in (end_there, end_here))
