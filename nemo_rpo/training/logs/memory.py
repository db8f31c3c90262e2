"""How much memory a rank has taken."""

from __future__ import annotations

import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far: of a GPU what its tensors took (``torch.cuda.max_memory_allocated``:
    neither CUDA's context nor what the allocator keeps in reserve), of a CPU the resident memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
