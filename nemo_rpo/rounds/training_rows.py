"""What a round trains on: the votes themselves, or what is believed of them as columns; and best against worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nemo_rpo.conversion.layouts import records_of
from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.crowd.win_rates import AgainstPolicy, against_policy
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.rows import Vote
from nemo_rpo.judging.judged_pairs import JudgedPair

BELIEVED = "believed"  # the annotator of what is believed


def prompt_of(pair: JudgedPair) -> str:
    """The key of the prompt that a pair of samples is of (:mod:`nemo_rpo.judging.pairs_file`)."""
    return pair.pair_id.rpartition(":")[0]


def rates(pairs: Sequence[JudgedPair], p_a: Mapping[str, float]) -> AgainstPolicy:
    """How often each pair's responses, a then b, beat the policy, as far as these pairs tell."""
    w = np.array([p_a.get(pair.pair_id, np.nan) for pair in pairs], dtype=np.float64)
    return against_policy([prompt_of(pair) for pair in pairs], [str(p.a) for p in pairs], [str(p.b) for p in pairs], w)


def best_against_worst(pairs: Sequence[JudgedPair], p_a: Mapping[str, float]) -> list[JudgedPair]:
    """One pair a prompt: the sample with the highest win rate and the one with the lowest, where they were compared."""
    found = rates(pairs, p_a).win_rate if pairs else np.zeros((0, 2))
    spread: dict[str, tuple[float, JudgedPair]] = {}
    for pair, (a, b) in zip(pairs, found.tolist(), strict=True):
        prompt, apart = prompt_of(pair), abs(a - b)
        if prompt not in spread or apart > spread[prompt][0]:
            spread[prompt] = apart, pair
    return [pair for _, pair in spread.values()]


def write_believed_rows(
    out: Path, pairs: Sequence[JudgedPair], p_a: Mapping[str, float], against: AgainstPolicy | None = None
) -> None:
    """A row a pair, the response that is likelier better as ``chosen``: ``win_rate`` of it, ``win_rate_chosen``,
    ``preference_score_chosen``, … and ``margin``, DNO's difference of expected win rates. ``against``: of these pairs
    [n, 2], where the opponent is another than the samples themselves.
    """
    if against is None:
        against = rates(pairs, p_a)
    lost: Counter = Counter()
    with record_writer(out, overwrite=True) as write:
        for i, pair in enumerate(pairs):
            if pair.pair_id not in p_a:
                continue
            p = p_a[pair.pair_id]
            first, second = (0, 1) if p >= 0.5 else (1, 0)
            win, score = against.win_rate[i], against.score[i]
            columns = {
                "win_rate_chosen": round(float(win[first]), 6),
                "win_rate_rejected": round(float(win[second]), 6),
                "preference_score_chosen": round(float(score[first]), 6),
                "preference_score_rejected": round(float(score[second]), 6),
                "margin": round(max(0.0, float(win[first] - win[second])), 6),
            }
            texts = (pair.a, pair.b) if first == 0 else (pair.b, pair.a)
            said = [Vote(BELIEVED, 1)]
            merged = MergedPair("", pair.pair_id, pair.prompt, *texts, said, None, pair.topic, columns, pair.given)
            for fields in records_of(merged, "hf", lost):
                write(fields)
