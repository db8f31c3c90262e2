"""A batch through the model by Megatron's pipeline schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_rpo.megatron.batch.head_outputs import HeadOutputs, HeadRequest
from nemo_rpo.megatron.step.forward import MicroBatch, ModelInput, input_shape, on_device, run_model

Ask = Callable[[MicroBatch], HeadRequest]
Receive = Callable[[HeadOutputs, ModelInput, MicroBatch], Any]


def forward_step(device: torch.device, ask: Ask, receive: Receive) -> Callable:
    """The function that Megatron's schedules call for each micro-batch: ``(iterator, model) -> (output, function of the
    last stage's output)``.

    Args:
        ask: what the head is to return for a micro-batch, which is on the device.
        receive: takes the head outputs on the last stage, with the micro-batch as the model and as the loss sees it.
    """

    def fwd_output_and_loss_func(
        data_iterator: Iterator[MicroBatch], model: torch.nn.Module, checkpoint_activations: Any = None
    ) -> tuple[Tensor | HeadOutputs, Callable]:
        x, batch = on_device(next(data_iterator), device)
        output = run_model(model, x, ask(batch))
        return output, lambda outputs, non_loss_data=False: receive(outputs, x, batch)

    return fwd_output_and_loss_func


def run_batch(
    function: Callable,
    batch: list[MicroBatch],
    model: list[torch.nn.Module],
    forward_only: bool,
    collect_non_loss_data: bool = False,
) -> list[Any]:
    """Runs ``function`` over the micro-batches of ``batch``; what it received on the last stage, nothing on others.

    Collectives: the model's own.
    """
    return run_schedule(model, function, batch, *input_shape(batch[0]), forward_only, collect_non_loss_data)


def run_schedule(
    model: Sequence[torch.nn.Module],
    function: Callable,
    items: Sequence[Any],
    rows: int,
    seq_length: int,
    forward_only: bool = True,
    collect_non_loss_data: bool = True,
) -> list[Any]:
    """Runs ``function`` over ``items``, one a micro-batch of ``rows`` rows of ``seq_length`` positions, which is all
    that the schedule knows of them; what it received on the last stage, nothing on others.

    Collectives: the model's own.
    """
    iterators = [iter(items) for _ in model]
    return get_forward_backward_func()(
        forward_step_func=function,
        data_iterator=iterators if len(model) > 1 else iterators[0],
        model=list(model) if len(model) > 1 else model[0],
        num_microbatches=len(items),
        seq_length=seq_length,
        micro_batch_size=rows,
        forward_only=forward_only,
        collect_non_loss_data=collect_non_loss_data,
    )
