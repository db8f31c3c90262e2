"""What a run believes of its pairs, as the side columns that losses of self-play read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np

from nemo_rpo.crowd.win_rates import against_policy
from nemo_rpo.data.rows import Text
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import SourcePair


def belief_columns(run: Run, source: Iterable[SourcePair]) -> dict[str, Mapping[str, float]]:
    """By the pair's key, columns under their canonical names, relative to ``merged.first``: ``win_rate`` (P(first ≻
    second), the posterior), ``chosen_win_rate`` and ``rejected_win_rate``, ``chosen_preference_score`` and
    ``rejected_preference_score`` (:func:`against_policy`, over all pairs of the prompt). Pairs that the run has not
    seen have none of their own, and count for no other.
    """
    keys, prompts, first, second, w = [], [], [], [], []
    for pair in source:
        keys.append(pair.key)
        prompts.append(_mark(pair.merged.prompt))
        first.append(_mark(pair.merged.first))
        second.append(_mark(pair.merged.second))
        w.append(_first_better(run, pair))
    found = against_policy(prompts, first, second, np.array(w))
    names = ("win_rate", "chosen_win_rate", "rejected_win_rate", "chosen_preference_score", "rejected_preference_score")
    rows = zip(keys, w, found.win_rate.tolist(), found.score.tolist(), strict=True)
    return {
        key: dict(zip(names, (round(value, 6) for value in (of, *rates, *scores)), strict=True))
        for key, of, rates, scores in rows
        if not math.isnan(of)
    }


def _first_better(run: Run, pair: SourcePair) -> float:
    """P(first is better): every label of the pair has the same posterior, turned to its side."""
    signs = [vote.sign for vote in pair.merged.votes if vote.sign]
    for sign, right in zip(signs, run.labels.w_last[pair.labels].tolist(), strict=False):
        if not math.isnan(right):
            return right if sign > 0 else 1 - right
    return math.nan


def _mark(text: Text) -> bytes:
    spelt = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    return hashlib.blake2b(spelt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
