"""Which tokens of a completion the assistant said, where a completion is a dialogue of several turns.

*Runs* are lengths, int32 [r] with r odd, that add up to the completion's tokens: of an assistant turn, of what stands
between it and the next one (the user's words, a tool's answer, headers), of the next turn, and so on. A completion that
is one turn is one run.
"""

from __future__ import annotations

import numpy as np


def said_by_assistant(runs: np.ndarray) -> np.ndarray:
    """bool [tokens]; only these tokens are scored, the others are context.

    >>> said_by_assistant(np.array([2, 1, 1]))
    array([ True,  True, False,  True])
    """
    return np.repeat(np.arange(len(runs)) % 2 == 0, runs)


def turn_lengths(runs: np.ndarray) -> np.ndarray:
    """Tokens of each assistant turn, int64 [turns]. The empty first run of a completion that begins with context is
    not a turn.

    >>> turn_lengths(np.array([0, 3, 5, 2, 1]))
    array([5, 1])
    """
    turns = runs[0::2].astype(np.int64)
    return turns[turns > 0]


def assistant_tokens(runs: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Tokens of all turns of each completion, int64 [...], its runs being ``runs[bounds[..., 0]:bounds[..., 1]]``.

    >>> assistant_tokens(np.array([4, 0, 3, 5, 2, 1]), np.array([[0, 1], [1, 6]]))
    array([4, 6])
    """
    odd = np.arange(len(runs)) % 2
    until = np.stack([np.concatenate([[0], np.cumsum(np.where(odd == of, runs, 0))]) for of in (0, 1)])
    start, stop = bounds[..., 0], bounds[..., 1]
    return until[start % 2, stop] - until[start % 2, start]
