"""Pairs to the tensors of a micro-batch, under NeMo-Aligner's names.

Shapes: n pairs, S padded length, V votes of the pair that has most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.data.cache import TokenizedPair
from nemo_rpo.data.turns import said_by_assistant, turn_lengths

IGNORE = -100  # the label of a position that is not scored, as in torch's cross entropy


def padded_length(lengths: np.ndarray, multiple_of: int, seq_length: int) -> int:
    """S for a batch: its longest prompt + response, rounded up to ``multiple_of``, at most ``seq_length`` so rounded.

    Args:
        lengths: int [n, 3] of prompt, chosen and rejected.

    >>> padded_length(np.array([[5, 4, 7], [3, 2, 2]]), multiple_of=8, seq_length=64)
    16
    """
    longest = int((lengths[:, 0] + lengths[:, 1:].max(1)).max())
    return -(-min(longest, seq_length) // multiple_of) * multiple_of


def collate(
    pairs: Sequence[TokenizedPair],
    pair_index: np.ndarray,
    valid: np.ndarray,
    seq_length: int,
    pad_id: int,
    max_votes: int,
) -> dict[str, Tensor]:
    """A micro-batch.

    Args:
        pairs: the pairs, each of which fits into ``seq_length``.
        pair_index: int64 [n], their indices in the cache.
        valid: bool [n]; False for a row that only fills up the batch. Such a row carries the tokens of a real pair, so
            that nothing computed from it is NaN, and no vote.
        seq_length: S.
        pad_id: a real token id, right of every sequence.
        max_votes: V, the same on every rank.

    Returns:
        ``chosen``, ``rejected`` int64 [n, S]: prompt + response, right-padded.
        ``chosen_labels``, ``rejected_labels`` int64 [n, S]: the token ids at response positions, −100 elsewhere; not
        shifted (the model's output at position t−1 predicts the label at t).
        ``chosen_length``, ``rejected_length`` int64 [n]: response tokens that are scored.
        ``chosen_turn_lengths``, ``rejected_turn_lengths`` int64 [n, T]: of these, tokens of each turn of the assistant,
        0 beyond the last; only where responses of the data have several turns, T being the most of the micro-batch.
        ``position_ids`` int64 [S].
        ``annotator`` int64 [n, V], 0 where there is no vote; ``sign`` float32 [n, V], ±1, and 0 there.
        ``gold`` int64 [n]: +1, −1, or 0 without one.
        ``valid`` bool [n]; ``pair_index`` int64 [n]; every side column float32 [n].
    """
    batch: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        batch[side], batch[f"{side}_labels"] = _side(
            [(pair.prompt_ids, *response_of(pair, side)) for pair in pairs], seq_length, pad_id
        )
    batch["position_ids"] = torch.arange(seq_length)
    return batch | pair_columns(pairs, pair_index, valid, max_votes)


def pair_columns(
    pairs: Sequence[TokenizedPair], pair_index: np.ndarray, valid: np.ndarray, max_votes: int
) -> dict[str, Tensor]:
    """What a micro-batch knows of each pair beyond its tokens, from ``chosen_length`` on in :func:`collate`."""
    annotator, sign = _votes(pairs, valid, max_votes)
    batch = {
        **_lengths(pairs),
        "annotator": annotator,
        "sign": sign,
        "gold": torch.tensor([pair.gold or 0 for pair in pairs]),
        "valid": torch.from_numpy(np.asarray(valid, dtype=bool)),
        "pair_index": torch.from_numpy(np.asarray(pair_index, dtype=np.int64)),
    }
    for name in pairs[0].columns:
        batch[name] = torch.tensor([pair.columns[name] for pair in pairs], dtype=torch.float32)
    return batch


def response_of(pair: TokenizedPair, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of one response of a pair, int32 [c], and which of them are scored, bool [c]."""
    ids, runs = getattr(pair, f"{side}_ids"), getattr(pair, f"{side}_runs")
    return ids, np.ones(len(ids), dtype=bool) if runs is None else said_by_assistant(runs)


def _lengths(pairs: Sequence[TokenizedPair]) -> dict[str, Tensor]:
    several_turns = pairs[0].chosen_runs is not None
    if not several_turns:
        return {
            f"{side}_length": torch.tensor([len(getattr(pair, f"{side}_ids")) for pair in pairs])
            for side in ("chosen", "rejected")
        }
    turns = {side: [turn_lengths(getattr(pair, f"{side}_runs")) for pair in pairs] for side in ("chosen", "rejected")}
    most = max(len(of) for both in turns.values() for of in both)
    padded = {side: np.stack([np.pad(of, (0, most - len(of))) for of in turns[side]]) for side in turns}
    lengths = {f"{side}_length": torch.from_numpy(of.sum(1)) for side, of in padded.items()}
    return lengths | {f"{side}_turn_lengths": torch.from_numpy(of) for side, of in padded.items()}


def _side(
    sequences: list[tuple[np.ndarray, np.ndarray, np.ndarray]], seq_length: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(sequences), seq_length), pad_id, dtype=torch.int64)
    labels = torch.full((len(sequences), seq_length), IGNORE, dtype=torch.int64)
    for i, (prompt, response, scored) in enumerate(sequences):
        begin, end = len(prompt), len(prompt) + len(response)
        ids[i, :begin] = torch.from_numpy(prompt)
        ids[i, begin:end] = torch.from_numpy(response).long()
        labels[i, begin:end] = torch.from_numpy(np.where(scored, response, IGNORE)).long()
    return ids, labels


def _votes(pairs: Sequence[TokenizedPair], valid: np.ndarray, max_votes: int) -> tuple[Tensor, Tensor]:
    annotator = torch.zeros((len(pairs), max_votes), dtype=torch.int64)
    sign = torch.zeros((len(pairs), max_votes), dtype=torch.float32)
    for i, pair in enumerate(pairs):
        if valid[i]:
            annotator[i, : len(pair.annotator)] = torch.from_numpy(pair.annotator)
            sign[i, : len(pair.sign)] = torch.from_numpy(pair.sign).float()
    return annotator, sign
