"""How many threads small sums get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One of torch's threads while the block runs. Threads that share the sums of some thousand votes wait for each
    other longer than they work, for minutes where the machine has other things to do.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
