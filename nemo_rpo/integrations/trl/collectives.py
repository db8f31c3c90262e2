"""The EM's collectives over accelerate's processes, which all hold different pairs. None is differentiable."""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from nemo_rpo.em import Collectives


def over_processes(accelerator: Accelerator) -> Collectives:
    """Sum and gather over all processes of ``accelerator``."""
    return Collectives(partial(_sum, accelerator), partial(_gather_rows, accelerator))


def _sum(accelerator: Accelerator, tensor: Tensor) -> None:
    """One all-reduce."""
    tensor.copy_(accelerator.reduce(tensor, "sum"))


def _gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """``rows`` [m, c] of every process, in their order: [M, c]; m may differ.

    Two all-gathers, of the lengths and of the rows padded to the longest; waits for the device.
    """
    if accelerator.num_processes == 1:
        return rows
    lengths = accelerator.gather(torch.tensor([len(rows)], device=accelerator.device)).tolist()
    longest = max(lengths)
    if longest == 0:
        return rows
    padded = torch.cat((rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])))
    parts = accelerator.gather(padded).split(longest)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
