"""Pairs, and rankings of more than two responses, to the tensors of a micro-batch, under NeMo-Aligner's names.

Shapes: n pairs, P rankings of up to K responses (n = P of two), m responses, S padded length, V votes of the pair that
has most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.data.cache.store import TokenizedPair
from nemo_rpo.data.rankings import better_and_worse, pairs_of
from nemo_rpo.data.turns import said_by_assistant, turn_lengths

IGNORE = -100  # the label of a position that is not scored, as in torch's cross entropy
Response = tuple[np.ndarray, np.ndarray]  # ids, int32 [c], and which of them are scored, bool [c]


def padded_length(lengths: np.ndarray, multiple_of: int, seq_length: int) -> int:
    """S for a batch: its longest prompt + response, rounded up to ``multiple_of``, at most ``seq_length`` so rounded.

    Args:
        lengths: int [n, 3] of prompt, chosen and rejected, or [P, 1+K].

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
    max_responses: int = 2,
) -> dict[str, Tensor]:
    """A micro-batch.

    Args:
        pairs: the pairs, each of which fits into ``seq_length``; those of rankings in a grid
            (:mod:`nemo_rpo.data.rankings`).
        pair_index: int64 [n], their indices in the cache.
        valid: bool [n]; False for a row that only fills up the batch or the grid. Such a row carries the tokens of a
            real pair, of a grid the first of its ranking, so that nothing computed from it is NaN, and no vote.
        seq_length: S.
        pad_id: a real token id, right of every sequence.
        max_votes: V, the same on every rank.
        max_responses: K, likewise.

    Returns:
        ``chosen``, ``rejected`` int64 [P, S]: prompt + response, right-padded; of rankings the best and the second
        best, and then ``rejected_2``, ``rejected_3``, …: the prompt alone where there is none.
        ``chosen_labels``, ``rejected_labels``, … int64 [P, S]: the token ids at response positions, −100 elsewhere; not
        shifted (the model's output at position t−1 predicts the label at t).
        ``chosen_length``, ``rejected_length`` int64 [n]: response tokens that are scored.
        ``turn_lengths`` int64 [K·P, T]: of the responses, all chosen ones first, the scored tokens of each turn of the
        assistant, 0 beyond the last; only where responses of the data have several turns, T being the most of the
        micro-batch.
        ``position_ids`` int64 [S].
        ``annotator`` int64 [n, V], 0 where there is no vote; ``sign`` float32 [n, V], ±1, and 0 there.
        ``gold`` int64 [n]: +1, −1, or 0 without one.
        ``valid`` bool [n]; ``pair_index`` int64 [n]; every side column float32 [n].

        Of rankings also ``compared`` int64 [2, n]: which of the K·P responses are the chosen and the rejected one of
        each pair; ``weight`` float32 [n]: the pair's weight within its ranking, 0 where invalid; ``ranking_size``
        int64 [P].

        Of completions judged alone ``completion``, ``completion_labels`` int64 [n, S] in the place of all sides, and
        ``compared`` int64 [2, n]: −1 for the side that is absent.
    """
    rankings = rankings_of(pairs, valid, max_responses)
    batch: dict[str, Tensor] = {"position_ids": torch.arange(seq_length)}
    if judged_alone(pairs):
        return batch | _alone(pairs, seq_length, pad_id) | pair_columns(pairs, pair_index, valid, max_votes)
    for k, side in enumerate(side_names(max_responses)):
        responses = [(ranking[0].prompt_ids, *response_of(ranking, k)) for ranking in rankings]
        batch[side], batch[f"{side}_labels"] = _side(responses, seq_length, pad_id)
    batch |= turns_of([(ranking, k) for k in range(max_responses) for ranking in rankings])
    places = np.arange(max_responses * len(rankings)).reshape(max_responses, -1).T
    return batch | pair_columns(pairs, pair_index, valid, max_votes) | ranking_columns(rankings, valid, places)


def side_names(responses: int) -> list[str]:
    """What a micro-batch calls the responses.

    >>> side_names(4)
    ['chosen', 'rejected', 'rejected_2', 'rejected_3']
    """
    return ["chosen", "rejected", *(f"rejected_{k}" for k in range(2, responses))]


def judged_alone(pairs: Sequence[TokenizedPair]) -> bool:
    """Whether one side of each pair is absent; in a batch all pairs are alike."""
    return not (len(pairs[0].chosen_ids) and len(pairs[0].rejected_ids))


def compared_alone(pairs: Sequence[TokenizedPair]) -> Tensor:
    """Which of n completions stand on the chosen and on the rejected side, int64 [2, n]; −1 where that is absent."""
    good = torch.tensor([len(pair.chosen_ids) > 0 for pair in pairs])
    places = torch.arange(len(pairs))
    return torch.stack((torch.where(good, places, -1), torch.where(good, -1, places)))


def _alone(pairs: Sequence[TokenizedPair], seq_length: int, pad_id: int) -> dict[str, Tensor]:
    completions = [side_of_alone(pair) for pair in pairs]
    texts = [(pair.prompt_ids, *response_of([pair], side)) for pair, side in zip(pairs, completions, strict=True)]
    ids, labels = _side(texts, seq_length, pad_id)
    turns = turns_of([([pair], side) for pair, side in zip(pairs, completions, strict=True)])
    return {"completion": ids, "completion_labels": labels, "compared": compared_alone(pairs), **turns}


def side_of_alone(pair: TokenizedPair) -> int:
    """On which side the completion of a pair stands that was judged alone: 0 chosen, 1 rejected."""
    return 0 if len(pair.chosen_ids) else 1


Ranking = Sequence[TokenizedPair]  # the best response's pairs: one for each of the others


def rankings_of(pairs: Sequence[TokenizedPair], valid: np.ndarray, max_responses: int) -> list[Ranking]:
    """The rankings of a grid; of one that fills up the batch its first two responses."""
    width = pairs_of(max_responses)
    found = []
    for start in range(0, len(pairs), width):
        responses = max(2, 1 + int(valid[start : start + max_responses - 1].sum()))
        found.append(pairs[start : start + responses - 1])
    return found


def response_of(ranking: Ranking, k: int) -> Response:
    """The k-th best response of a ranking; beyond its last, nothing."""
    if k > len(ranking):
        return np.empty(0, dtype=np.int32), np.empty(0, dtype=bool)
    ids, runs = _side_of(ranking, k)
    return ids, np.ones(len(ids), dtype=bool) if runs is None else said_by_assistant(runs)


def _side_of(ranking: Ranking, k: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids and runs of a response."""
    if k == 0:
        return ranking[0].chosen_ids, ranking[0].chosen_runs
    return ranking[k - 1].rejected_ids, ranking[k - 1].rejected_runs


def ranking_columns(rankings: Sequence[Ranking], valid: np.ndarray, places: np.ndarray) -> dict[str, Tensor]:
    """What a micro-batch knows of rankings of more than two; ``places [P, K]``: where their responses stand in it."""
    count, max_responses = places.shape
    if max_responses == 2:
        return {}
    real = valid.reshape(count, -1)
    compared = np.stack([places[:, of] for of in better_and_worse(max_responses)])
    compared = np.where(real, compared, compared[:, :, :1])  # where there is no pair, the ranking's first
    return {
        "compared": torch.from_numpy(compared.reshape(2, -1)),
        "weight": torch.from_numpy((real / real.sum(1, keepdims=True).clip(min=1)).astype(np.float32).reshape(-1)),
        "ranking_size": torch.tensor([1 + len(ranking) for ranking in rankings]),
    }


def turns_of(responses: Sequence[tuple[Ranking, int]]) -> dict[str, Tensor]:
    """``turn_lengths`` of responses, each given by its ranking and its place in it; nothing where all are one turn."""
    if responses[0][0][0].chosen_runs is None:
        return {}
    turns = [
        turn_lengths(_side_of(ranking, k)[1]) if k <= len(ranking) else np.empty(0, np.int64)
        for ranking, k in responses
    ]
    most = max(map(len, turns))
    return {"turn_lengths": torch.from_numpy(np.stack([np.pad(of, (0, most - len(of))) for of in turns]))}


def pair_columns(
    pairs: Sequence[TokenizedPair], pair_index: np.ndarray, valid: np.ndarray, max_votes: int
) -> dict[str, Tensor]:
    """What a micro-batch knows of each pair beyond its tokens, from ``chosen_length`` on in :func:`collate`."""
    annotator, sign = _votes(pairs, valid, max_votes)
    batch = {
        **{f"{side}_length": _lengths(pairs, k) for k, side in enumerate(side_names(2))},
        "annotator": annotator,
        "sign": sign,
        "gold": torch.tensor([pair.gold or 0 for pair in pairs]),
        "valid": torch.from_numpy(np.asarray(valid, dtype=bool)),
        "pair_index": torch.from_numpy(np.asarray(pair_index, dtype=np.int64)),
    }
    for name in pairs[0].columns:
        batch[name] = torch.tensor([pair.columns[name] for pair in pairs], dtype=torch.float32)
    return batch


def _lengths(pairs: Sequence[TokenizedPair], k: int) -> Tensor:
    """Scored tokens of the chosen (k = 0) or the rejected (k = 1) response of each pair."""
    sides = [_side_of([pair], k) for pair in pairs]
    return torch.tensor([len(ids) if runs is None else int(turn_lengths(runs).sum()) for ids, runs in sides])


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
