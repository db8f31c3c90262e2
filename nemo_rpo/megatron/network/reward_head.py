"""What a reward or preference model has instead of log-probs: linear maps of hidden states, one an output.

Shapes: s positions (s/T on a rank under sequence parallelism), b rows, h hidden size, m responses, w width of an
output.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from nemo_rpo.megatron.batch.context_parallel import sum_over_context
from nemo_rpo.megatron.batch.responses import ResponseTokens

REWARD_HEAD = "reward_head"  # the head's name in the model, before the names of its weights
# Read before the response begins, from the prompt's last token; the others from the response's last token.
_OF_PROMPT = frozenset({"gate", "coefficients", "tie_width"})
_SHARES = frozenset({"gate"})  # add up to 1
_PRODUCTS = frozenset({"embedding"})  # enter the loss as products of themselves


class RewardHead(torch.nn.Module):
    """The same on every tensor-parallel rank.

    Args:
        hidden_size: h.
        outputs: name → w: ``score``, ``embedding``, ``gate``, ``coefficients``, as in
            :data:`nemo_rpo.losses.COLUMNS`.
        seed: of the weights that cannot start at 0; the same weights whatever the layout.

    Weights ``<output>.weight [w, h]``, no bias. They start at 0, so a reward model has no opinion before its first
    step; only an embedding, whose score is a product, would never leave 0.
    """

    def __init__(self, hidden_size: int, outputs: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        generator = torch.Generator().manual_seed(seed)
        for name, width in self.outputs.items():
            # Not Linear's own initialisation, which would draw from the random numbers of all ranks.
            layer = torch.nn.utils.skip_init(torch.nn.Linear, hidden_size, width, bias=False)
            start = torch.zeros(width, hidden_size)
            if name in _PRODUCTS:
                start.normal_(std=hidden_size**-0.5, generator=generator)
            layer.weight.data.copy_(start)
            self.add_module(name, layer)

    def forward(
        self, hidden: Tensor, responses: ResponseTokens, sequence_parallel: bool, group: torch.distributed.ProcessGroup
    ) -> dict[str, Tensor]:
        """``hidden [s, b, h]`` -> fp32 ``[m]`` of an output of width 1, ``[m, w]`` of the others, by name; a gate's add
        up to 1.

        ``group`` are the tensor-parallel ranks, each of which computes all of it. Collectives: under sequence
        parallelism an all-gather of ``[s, b, h]``, whose backward is none; :func:`sum_over_context` of each output,
        of which the rank that has the position makes all.
        """
        if sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=group)
        flat = hidden.flatten(0, 1)
        found = {}
        for name, width in self.outputs.items():
            place = responses.begin if name in _OF_PROMPT else responses.end
            read = flat.index_select(0, place.clamp(min=0)).float() * (place >= 0).unsqueeze(1)
            found[name] = sum_over_context(F.linear(read, self.get_submodule(name).weight.float()))
            if name in _SHARES:
                found[name] = found[name].softmax(-1)
            elif width == 1:
                found[name] = found[name].squeeze(-1)
        return found


def head_of(chunks: list[torch.nn.Module]) -> RewardHead | None:
    """The reward head among a rank's model chunks, wrapped or not; None on other stages and of other models."""
    model = chunks[-1]
    while hasattr(model, "module"):
        model = model.module
    return getattr(model, REWARD_HEAD, None)
