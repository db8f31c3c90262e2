"""A frozen policy, the reference or a previous iterate: a second model, the same model with its weights swapped, or,
where adapters are trained, the model without them.

Both run the policy's own code on the policy's own batch shapes, so without dropout every margin is exactly 0 before the
first update. They run in evaluation mode: the same batch always gets the same log-probs.
(Cached log-probs: :mod:`nemo_rpo.training.reference.precompute`.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from nemo_rpo.megatron.network.lora.attachment import has_adapters
from nemo_rpo.megatron.network.lora.switch import switched_off
from nemo_rpo.megatron.weight_swap import WeightSwap


class ReferencePolicy:
    """Holds the weights that ``chunks`` have now.

    Args:
        chunks: this rank's model chunks before they are wrapped for data parallelism.
        build_resident: builds a second model to keep on the device (one more copy of the weights there). None: the
            weights that are trained wait in host memory and are swapped in for each reference forward (three copies of
            them between host and device a step, two of them at the same time; :mod:`nemo_rpo.megatron.weight_swap`).
        without_adapters: the frozen policy is the base: adapters are switched off for its forward, and nothing is kept
            or moved.
        keep_head: keeps the language-model head on the device in either case, for the divergence to the policy.
        around: makes a context that is entered while the weights are swapped in, such as another precision.

    Attributes:
        head: its head ``[V/T, h]``, on the last pipeline stage; None where it is not kept.
    """

    def __init__(
        self,
        chunks: list[torch.nn.Module],
        build_resident: Callable[[], list[torch.nn.Module]] | None,
        keep_head: bool = False,
        without_adapters: bool = False,
        around: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self._around = around
        self._resident = None
        self._as_it_was: Callable[[], AbstractContextManager] | None = None
        adapted = has_adapters(chunks)
        if without_adapters:
            self._as_it_was = partial(switched_off, chunks)
        elif build_resident is None:
            trained = (weight for weight in _weights(chunks) if weight.requires_grad)
            self._as_it_was = WeightSwap(list(trained if adapted else _weights(chunks))).kept_values
        else:
            self._resident = [chunk.requires_grad_(False).eval() for chunk in build_resident()]
            _write(self._resident, list(_weights(chunks)))
        copied = build_resident is None and not adapted
        self.head = _head_of(self._resident or chunks, copied) if keep_head else None

    @contextlib.contextmanager
    def active(self, policy: list[torch.nn.Module]) -> Iterator[list[torch.nn.Module]]:
        """The chunks to run the reference forward with, in evaluation mode: the resident ones, or ``policy`` (wrapped)
        being the reference until the block is left.

        No collective.
        """
        if self._as_it_was is None:
            yield self._resident
            return
        with self._as_it_was(), self._around(), evaluation_mode(policy):
            yield policy


@contextlib.contextmanager
def evaluation_mode(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Switches dropout off inside the block and restores each chunk's mode afterwards."""
    modes = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, mode in zip(chunks, modes, strict=True):
            chunk.train(mode)


def _head_of(chunks: list[torch.nn.Module], copy: bool) -> Tensor | None:
    model = chunks[-1]
    while hasattr(model, "module"):
        model = model.module
    if not model.post_process:
        return None
    return model.head_weight.detach().clone() if copy else model.head_weight.detach()


def _weights(chunks: list[torch.nn.Module]) -> Iterator[Tensor]:
    """Parameters, and what else decides what a model predicts: the bias of a router, which is a buffer."""
    for chunk in chunks:
        yield from chunk.parameters()
        yield from (buffer for name, buffer in chunk.named_buffers() if name.endswith("router.expert_bias"))


@torch.no_grad()
def _write(chunks: list[torch.nn.Module], weights: list[Tensor]) -> None:
    for parameter, weight in zip(_weights(chunks), weights, strict=True):
        parameter.copy_(weight)
