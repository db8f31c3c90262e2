"""The margins of one policy on one set of labels: what is measured once and judged, kept and compared ever after.

Shapes: v labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.data.cache.arrow import pair_ids, prompt_names, pyarrow
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError, DataError, first_line

_COLUMNS = ("pair_id", "annotator", "prompt", "sign", "gold", "delta")


@dataclass(frozen=True)
class Scores:
    """A row a signed label, in the order of the data.

    Attributes:
        pair_id, annotator: [v] names; the annotator is ``""`` for labels without one.
        prompt: [v], equal for pairs of one prompt.
        sign: int8 [v], +1 the label prefers the pair's chosen response, -1 its rejected one.
        gold: int8 [v], likewise, 0 where unknown.
        delta: float64 [v], Δ of the pair, chosen over rejected, under the loss's link.
    """

    pair_id: np.ndarray
    annotator: np.ndarray
    prompt: np.ndarray
    sign: np.ndarray
    gold: np.ndarray
    delta: np.ndarray

    def __len__(self) -> int:
        return len(self.sign)

    @property
    def margin(self) -> np.ndarray:
        """float64 [v], Δ of the response that is better by the gold label, by the recorded one where there is none."""
        return np.where(self.gold != 0, self.gold, self.sign) * self.delta


def scores_of(cache: PreferenceCache, delta: np.ndarray) -> Scores:
    """From the margins [n] of all pairs of ``cache``; raises :class:`DataError` for one that is no finite number, since
    a policy cannot be judged by it.
    """
    broken = np.flatnonzero(~np.isfinite(delta))
    if len(broken):
        first = int(broken[0])
        raise DataError(
            f"{len(broken):,} of {len(delta):,} pairs have a margin that is no finite number, the first '"
            f"{cache.pair_id(first)}' ({cache.where(first)}): the policy or its reference overflows there; leave them "
            "out"
        )
    pair, annotator, sign = cache.all_votes()
    names = np.array(["" if name == VIRTUAL else name for name in cache.annotators.ids], dtype=object)
    ids = pair_ids(cache).to_numpy(zero_copy_only=False)
    prompts = prompt_names(cache)
    margins = delta[pair].astype(np.float64)
    return Scores(ids[pair], names[annotator], prompts[pair], sign, np.asarray(cache.gold)[pair], margins)


def write_scores(scores: Scores, out: Path) -> None:
    """A Parquet file; raises :class:`ConfigError` if it cannot be written."""
    pa, pq = pyarrow()
    table = pa.table({name: pa.array(getattr(scores, name)) for name in _COLUMNS})
    with whole_file(out, ConfigError, "name another place") as writing:
        pq.write_table(table, writing)


def read_scores(path: Path) -> Scores:
    """Raises :class:`DataError` for a file that is missing, damaged, or none of :func:`write_scores`."""
    pa, pq = pyarrow()
    if not path.is_file():
        problem = "is a folder (--beside compares with a checkpoint)" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {problem}; name a file that nemo-rpo evaluate --scores has written")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as exc:
        reason = first_line(exc).rstrip(".")
        raise DataError(f"{path}: no Parquet file, or a truncated one ({reason})") from exc
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing or not table.num_rows:
        raise DataError(f"{path} has no {missing[0] if missing else 'rows'}; write it with nemo-rpo evaluate --scores")
    try:
        return Scores(*(table[name].to_numpy() for name in _COLUMNS))
    except (pa.ArrowException, ValueError) as exc:
        raise DataError(f"{path} is damaged ({first_line(exc)}); write it with nemo-rpo evaluate --scores") from exc
