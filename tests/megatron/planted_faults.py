"""What a step must not do on a GPU, each kind once: the rehearsal has to find it, by this file and its line."""

from __future__ import annotations

import torch
from torch import Tensor


def two_devices(loss: Tensor) -> None:
    loss + torch.ones(len(loss))


def a_value(loss: Tensor) -> None:
    loss.sum().item()


def a_mask(loss: Tensor) -> None:
    loss[loss > 0]


def a_shape_by_values(loss: Tensor) -> None:
    loss.nonzero()


def repeats_without_a_size(loss: Tensor) -> None:
    loss.repeat_interleave(torch.ones_like(loss, dtype=torch.int64))


def a_copy_to_the_host(loss: Tensor) -> None:
    loss.cpu()


def a_copy_that_waits(loss: Tensor) -> None:
    torch.ones(3).to(loss.device)


def a_copy_of_pageable_memory(loss: Tensor) -> None:
    torch.ones(3).to(loss.device, non_blocking=True)


# Each with a word of what is said about it.
FAULTS = {
    two_devices: "devices",
    a_value: "the host waits for _local_scalar_dense",
    a_mask: "the host waits for index with a mask",
    a_shape_by_values: "the host waits for nonzero",
    repeats_without_a_size: "the host waits for the sum of repeat_interleave",
    a_copy_to_the_host: "a copy from the device that the host waits for",
    a_copy_that_waits: "a copy to the device that the host waits for",
    a_copy_of_pageable_memory: "a copy to the device through memory that is not pinned",
}
