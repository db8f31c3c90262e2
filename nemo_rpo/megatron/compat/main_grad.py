"""The protocol between Megatron's linear layers and its data parallelism: gradients that skip autograd.

DDP gives each parameter an fp32 ``main_grad``. A layer whose backward adds to it sets ``grad_added_to_main_grad`` and
hands autograd a dummy, which DDP's hook throws away; where the parameter has a second gradient through autograd
(``zero_out_wgrad``: tied embeddings) the hook adds what autograd has, so the dummy is then zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rpo.megatron.compat.places import reaches

_HOOK = (
    "megatron.core.distributed:DistributedDataParallel[grad_added_to_main_grad, main_grad, zero_out_wgrad]",
    "megatron.core.tensor_parallel.layers:LinearWithGradAccumulationAndAsyncCommunication.backward"
    "[grad_added_to_main_grad, main_grad, zero_out_wgrad]",
)


@reaches(*_HOOK)
def keeps_main_grad(weight: Tensor) -> bool:
    """Whether a backward may add to ``weight.main_grad``.

    Reason: the head's gradient is the largest of the model; through autograd it would exist once more, in fp32.
    """
    return getattr(weight, "grad_added_to_main_grad", None) is not None


@reaches(*_HOOK)
def announce_main_grad(weight: Tensor) -> Tensor:
    """Marks that a backward has added to ``weight.main_grad``; the dummy gradient for autograd.

    Reason: as :func:`keeps_main_grad`.
    """
    weight.grad_added_to_main_grad = True
    zeros = getattr(weight, "zero_out_wgrad", False)
    return torch.zeros_like(weight) if zeros else torch.empty_like(weight)


@reaches(*_HOOK)
def through_autograd(weight: Tensor) -> Tensor:
    """``weight`` for a use whose gradient autograd delivers: a view, which does not carry the parameter's marks.

    Reason: with the marks in sight, a second use of the same weight would look as if it had added to ``main_grad``.
    """
    return weight.view_as(weight)
