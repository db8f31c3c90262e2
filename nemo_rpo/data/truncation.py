"""What is cut from a pair that does not fit: the left of its prompt, and nothing else."""

from __future__ import annotations

import numpy as np

TRUNCATION_RULE = "prompt-left-keep-bos/1"  # part of the cache key: a new rule is a new name


def fits(longest_response: int, seq_length: int) -> bool:
    """Whether a response of that many tokens can be scored: whole, with one prompt token to predict its first from."""
    return longest_response + 1 <= seq_length


def truncate_prompt(prompt: np.ndarray, longest_response: int, seq_length: int, bos_id: int | None) -> np.ndarray:
    """The end of ``prompt`` [p] that leaves room for the longer of the two responses, both being given the same prompt.

    A leading beginning-of-sequence token stays in its place. The caller has checked :func:`fits`.

    >>> truncate_prompt(np.array([1, 7, 8, 9]), longest_response=2, seq_length=5, bos_id=1)
    array([1, 8, 9])
    """
    room = seq_length - longest_response
    if len(prompt) <= room:
        return prompt
    if bos_id is None or prompt[0] != bos_id:
        return prompt[len(prompt) - room :]
    return np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
