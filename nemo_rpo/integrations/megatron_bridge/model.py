"""Log-probs of responses from a GPTModel that Megatron-Bridge has built.

Megatron-Core calls an ``output_processor`` where it would make logits (since 0.18); here it asks the output layer,
which has become a :class:`ScoringHead`, for the log-probs of the response tokens alone, a block of the vocabulary at a
time. Shapes: n response tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.utils import unwrap_model
from torch import Tensor

from nemo_rpo.errors import ConfigError
from nemo_rpo.megatron.logprobs.liger import check_liger
from nemo_rpo.megatron.network.gpt import ScoringHead
from nemo_rpo.megatron.step.forward import MicroBatch, ModelInput, on_device

PAIR_INDEX_ON_CPU = "pair_index_on_cpu"
Receive = Callable[[Tensor, ModelInput, MicroBatch], Any]


def take_over_head(model: list[torch.nn.Module], vocab_size: int, logprob_head: str) -> None:
    """Lets the output layer of a model (wrapped or not) return log-probs of response tokens when they are requested; it
    returns logits otherwise.

    Args:
        vocab_size: tokens of the vocabulary without its padding.
        logprob_head: ``rpo.logprob_head``.

    Raises:
        ConfigError: the output layer is not Megatron-Core's own (it caps its logits, say).
    """
    for chunk in unwrap_model(model):
        if not chunk.post_process:
            continue
        layer = chunk.output_layer
        if type(layer) is not ColumnParallelLinear:
            raise ConfigError(
                f"the output layer of this model is a {type(layer).__name__}; log-probs are only supported "
                "for Megatron-Core's ColumnParallelLinear (models.gpt, without an MXFP8 output projection)"
            )
        if logprob_head == "liger":
            check_liger(vocab_size, layer.output_size, layer.tp_group.size())
        ScoringHead.take_over(layer, vocab_size, logprob_head)
    AutoMapping.register_module_type(ScoringHead.__name__, "column")  # for exports in the course of the run


def score(iterator: Iterator[MicroBatch], model: torch.nn.Module, receive: Receive) -> tuple[Tensor, Callable]:
    """A micro-batch through a stage: its output, and the function that Megatron's schedules call with it on the last
    stage, where it is the log-probs of the response tokens, fp32 [n].

    ``receive`` gets these, and the micro-batch as the model and as the loss sees it; ``pair_index`` is on the CPU too,
    under :data:`PAIR_INDEX_ON_CPU`.
    """
    on_cpu = next(iterator)
    device = next(model.parameters()).device
    x, batch = on_device(on_cpu, device)
    batch[PAIR_INDEX_ON_CPU] = on_cpu["pair_index"]  # looked up there, without a wait
    output = model(
        input_ids=x.tokens,
        position_ids=x.position_ids,
        attention_mask=None,  # causal; padding stands behind everything that is scored
        output_processor=_response_logprobs,
        output_processor_context=x.responses,
    )
    return output, lambda logps, non_loss_data=False: receive(logps, x, batch)


def _response_logprobs(
    *, hidden_states: Tensor, output_layer: ScoringHead, output_weight: Tensor | None, context: Any, **_: Any
) -> Tensor:
    # Through the module and not beside it: forward hooks wait there for weights that are still being gathered.
    found, _ = output_layer(hidden_states, weight=output_weight, responses=context)
    return found["logps"]
