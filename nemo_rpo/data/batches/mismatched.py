"""Prompts with completions of other prompts behind them: what KTO measures its reference point on.

Shapes: n completions judged alone.
"""

from __future__ import annotations

import numpy as np

from nemo_rpo.data.cache.store import PreferenceCache, TokenizedPair
from nemo_rpo.data.truncation import truncate_prompt
from nemo_rpo.errors import DataError

_NOTHING = np.empty(0, dtype=np.int32)


class Mismatched:
    """A cache of completions judged alone, in which each prompt is followed by another's completion: that of the next
    row with a different prompt, and of the first rows after the last. Such pairs carry no label.

    The partner of a row is fixed, as it is in TRL, whose rows are rotated within the batches of the file's order.

    Args:
        cache: whose rows they are.
        seq_length: prompts are cut from the left to it, as those of the cache itself are.
    """

    max_responses = 2

    def __init__(self, cache: PreferenceCache, seq_length: int) -> None:
        self._cache, self._seq_length = cache, seq_length
        self.pad_id, self.max_votes = cache.pad_id, cache.max_votes
        self.ranking_lengths = _Lengths(self)
        self._partners: dict[int, int] = {}

    def pairs_of(self, ranking: int) -> range:
        """The row itself."""
        return range(ranking, ranking + 1)

    def partner(self, i: int) -> int:
        """The row whose completion stands behind the prompt of row ``i``.

        Raises:
            DataError: all rows have one prompt.
        """
        if i not in self._partners:
            prompt, rows = self._cache.pair(i).prompt_ids, len(self._cache)
            others = ((i + step) % rows for step in range(1, rows))
            found = next((j for j in others if not np.array_equal(prompt, self._cache.pair(j).prompt_ids)), None)
            if found is None:
                raise DataError(
                    f"{self._cache.where(i)}: all rows of the data have one prompt, and kto measures its reference "
                    "point on completions behind other prompts: set model.rpo.base_loss to apo_zero_unpaired or bco"
                )
            self._partners[i] = found
        return self._partners[i]

    def pair(self, i: int) -> TokenizedPair:
        """Row ``i`` with its partner's completion, on the chosen side."""
        pair, other = self._cache.pair(i), self._cache.pair(self.partner(i))
        ids, runs = other.chosen_ids, other.chosen_runs
        if not len(ids):
            ids, runs = other.rejected_ids, other.rejected_runs
        prompt = truncate_prompt(pair.prompt_ids, len(ids), self._seq_length, self._cache.bos_id)
        return pair._replace(
            prompt_ids=prompt,
            chosen_ids=ids,
            rejected_ids=_NOTHING,
            annotator=pair.annotator[:0],
            sign=pair.sign[:0],
            chosen_runs=runs,
            rejected_runs=None if runs is None else _NOTHING,
        )


class _Lengths:
    """``ranking_lengths`` of a :class:`Mismatched`, found when they are asked for."""

    def __init__(self, of: Mismatched) -> None:
        self._of = of

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """int64 [m, 3] of ``rows`` int64 [m]: prompt, completion, and nothing."""
        pairs = map(self._of.pair, rows.tolist())
        return np.array([(len(pair.prompt_ids), len(pair.chosen_ids), 0) for pair in pairs], dtype=np.int64)
