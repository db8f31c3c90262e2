"""A pack of pairs, or of rankings, to the tensors of a micro-batch: one row without padding between its sequences.

Shapes: n pairs, P rankings of up to K responses, m responses in all (2n of pairs), S tokens of the pack, t response
tokens that are scored, V votes of the pair that has most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.data.batches.padded import (
    Response,
    compared_alone,
    judged_alone,
    pair_columns,
    ranking_columns,
    rankings_of,
    response_of,
    side_of_alone,
    turns_of,
)
from nemo_rpo.data.cache.store import TokenizedPair


def collate_packed(
    pairs: Sequence[TokenizedPair],
    pair_index: np.ndarray,
    valid: np.ndarray,
    seq_length: int,
    pad_id: int,
    max_votes: int,
    share_prompts: bool,
    max_responses: int = 2,
    sequence_multiple_of: int = 1,
) -> dict[str, Tensor]:
    """A micro-batch of one pack; arguments as :func:`nemo_rpo.data.batches.padded.collate`.

    Args:
        seq_length: S, at least the tokens of the pairs; what is left is filled with ``pad_id``.
        share_prompts: ``[prompt | chosen | rejected]`` a pair, with the positions of both responses going on from the
            prompt (of a ranking all K responses); else ``[prompt | chosen] [prompt | rejected]``, each filled up with
            ``pad_id`` to ``sequence_multiple_of``.

    Returns:
        ``tokens`` int64 [1, S].
        ``position_ids`` int64 [1, S], from 0 in each sequence.
        ``segments`` int64 [k, 1+K]: the pack is k *trees* end to end, each a trunk and branches that attend to it and
            not to each other, given by their lengths. A sequence is a trunk without branches.
        ``response_index``, ``response_tokens`` int64 [t]: the position that predicts a response token, and the token;
            all chosen responses in the order of the pairs, then all rejected.
        ``response_ends`` int64 [m]: the position of the last scored token of each.
        ``response_lengths`` int64 [m]: scored tokens of each.
        ``chosen_length``, ``rejected_length`` and everything else a pair has, as
            :func:`~nemo_rpo.data.batches.padded.collate` gives it; a ranking has its real responses alone. Completions
            judged alone come in the order of the pairs.
    """
    pack, rankings, alone = _Pack(), rankings_of(pairs, valid, max_responses), judged_alone(pairs)
    responses: list[tuple[int, int]] = []  # the k-th best, and of which ranking: one after the other in the pack
    for i, ranking in enumerate(rankings):
        there = [side_of_alone(ranking[0])] if alone else list(range(1 + len(ranking)))
        sides = [response_of(ranking, k) for k in there]
        responses += [(k, i) for k in there]
        for branches in [sides] if share_prompts else [[side] for side in sides]:
            pack.add(ranking[0].prompt_ids, branches, as_branches=share_prompts)
            pack.fill_sequence(sequence_multiple_of, pad_id)
    order = list(range(len(responses))) if alone else sorted(range(len(responses)), key=responses.__getitem__)
    places = np.zeros((len(rankings), max_responses), dtype=np.int64)
    for place, response in enumerate(order):
        k, i = responses[response]
        places[i, k] = place
    pack.fill(seq_length, pad_id)
    return {
        "tokens": _tensor(pack.tokens).unsqueeze(0),
        "position_ids": _tensor(pack.positions).unsqueeze(0),
        "segments": torch.tensor([[*tree, *[0] * (1 + max_responses - len(tree))] for tree in pack.segments]),
        "response_index": _tensor([pack.predictors[i] for i in order]),
        "response_tokens": _tensor([pack.scored[i] for i in order]),
        "response_ends": torch.tensor([pack.ends[i] for i in order]),
        "response_lengths": torch.tensor([len(pack.scored[i]) for i in order]),
        **turns_of([(rankings[i], k) for k, i in (responses[place] for place in order)]),
        **pair_columns(pairs, pair_index, valid, max_votes),
        **ranking_columns(rankings, valid, places),
        **({"compared": compared_alone(pairs)} if alone else {}),
    }


class _Pack:
    """The arrays of a pack while it grows; one entry of ``predictors``, ``scored`` and ``ends`` a response."""

    def __init__(self) -> None:
        self.size = 0
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.segments: list[tuple[int, ...]] = []
        self.predictors: list[np.ndarray] = []
        self.scored: list[np.ndarray] = []
        self.ends: list[int] = []

    def add(self, prompt: np.ndarray, responses: Sequence[Response], as_branches: bool) -> None:
        """A prompt and the responses that go on from it, each with which of its tokens are scored."""
        self._append(prompt, start=0)
        end_of_prompt = self.size - 1
        for response, scored in responses:
            predictors = np.concatenate([[end_of_prompt], np.arange(len(response) - 1) + self.size])
            self.predictors.append(predictors[scored])
            self.scored.append(response[scored])
            self.ends.append(self.size + int(np.flatnonzero(scored)[-1]))
            self._append(response, start=len(prompt))
        lengths = [len(response) for response, _ in responses]
        self.segments.append((len(prompt), *lengths) if as_branches else (len(prompt) + lengths[0],))

    def fill_sequence(self, multiple_of: int, pad_id: int) -> None:
        """Goes on with the last sequence, unscored, to a length that is a multiple of ``multiple_of``."""
        [length, *branches] = self.segments[-1]
        if left := -length % multiple_of:
            assert not branches, "the prompts of padded sequences are not shared"
            self._append(np.full(left, pad_id), start=length)
            self.segments[-1] = (length + left,)

    def fill(self, seq_length: int, pad_id: int) -> None:
        """Makes up ``seq_length`` by a sequence of its own that nobody scores."""
        if left := seq_length - self.size:
            self._append(np.full(left, pad_id), start=0)
            self.segments.append((left,))

    def _append(self, ids: np.ndarray, start: int) -> None:
        self.tokens.append(ids)
        self.positions.append(np.arange(start, start + len(ids)))
        self.size += len(ids)


def _tensor(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
