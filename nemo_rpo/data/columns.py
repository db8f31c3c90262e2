"""Side columns of a pair, and what each becomes when the pair is turned around.

A loss that needs one (reward-aware, margin and win-rate losses) finds it in the batch under the name below.
"""

from __future__ import annotations

import numpy as np

_SWAPPED = {
    "chosen_reward": "rejected_reward",
    "chosen_win_rate": "rejected_win_rate",  # against the previous iterate
    "chosen_preference_score": "rejected_preference_score",  # log-odds of the same
    "chosen_player": "rejected_player",  # of a battle: the places of its models in model.data.players
}
_PARTNER = {**_SWAPPED, **{rejected: chosen for chosen, rejected in _SWAPPED.items()}}
_NEGATED = ("margin", "consensus")  # chosen's score minus rejected's; log-odds that chosen is the better one
_COMPLEMENTED = ("win_rate",)  # the probability that chosen wins
# How strong or how doubtful the preference is, whichever way it points; 1 where both responses were called bad, else 0.
_UNCHANGED = ("strength", "flip_rate", "both_bad")
_NOT_IN_FILES = ("chosen_player", "rejected_player")  # places in a list that another run may order otherwise

NAMES = (*_PARTNER, *_NEGATED, *_COMPLEMENTED, *_UNCHANGED)

# Of caches that keep ties: 1 where nobody prefers either response and somebody called a tie, else 0.
TIE = "tie"

# What files call them: NeMo-Aligner's names are the canonical ones; TRL-style and A/B layouts have their own.
ALIASES = {
    **{name: name for name in NAMES if name not in _NOT_IN_FILES},
    "score_chosen": "chosen_reward",
    "score_rejected": "rejected_reward",
    "chosen_score": "chosen_reward",
    "rejected_score": "rejected_reward",
    "chosen-rating": "chosen_reward",
    "rejected-rating": "rejected_reward",
    "reward_a": "chosen_reward",
    "reward_b": "rejected_reward",
    "win_rate_chosen": "chosen_win_rate",
    "win_rate_rejected": "rejected_win_rate",
    "preference_score_chosen": "chosen_preference_score",
    "preference_score_rejected": "rejected_preference_score",
}


def turned(columns: dict[str, np.ndarray], where: np.ndarray) -> dict[str, np.ndarray]:
    """The columns [n] with chosen and rejected exchanged in the rows ``where`` (bool [n]); NaN stays NaN.

    A column whose partner is absent gets the partner too (a turned ``chosen_reward`` is a ``rejected_reward``).

    >>> turned({"margin": np.array([1.0, 2.0])}, np.array([False, True]))["margin"]
    array([ 1., -2.])
    """
    absent = np.full(where.shape, np.nan, dtype=np.float32)
    result = {}
    for name in sorted(set(columns) | {_PARTNER[n] for n in columns if n in _PARTNER and where.any()}):
        here = columns.get(name, absent)
        if name in _PARTNER:
            there = columns.get(_PARTNER[name], absent)
        elif name in _NEGATED:
            there = -here
        elif name in _COMPLEMENTED:
            there = 1 - here
        else:
            there = here
        result[name] = np.where(where, there, here)
    return result
