"""``nemo_rpo.estimate_reliability``: the reliability of annotators from a table of votes, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.crowd.long_form import BESIDE, columns_of, vote_table
from nemo_rpo.crowd.reliability import Reliability, assess
from nemo_rpo.data.vote_ledger import read_votes
from nemo_rpo.errors import DataError


def estimate_reliability(
    votes: Any,
    *,
    pair: str = "pair",
    annotator: str = "annotator",
    vote: str = "vote",
    good_enough: float = CrowdSettings.good_enough,
    min_labels: int = CrowdSettings.min_labels,
    doubtful: int = CrowdSettings.doubtful,
    **columns: str,
) -> Reliability:
    """How far each annotator, and each label, can be believed; from votes alone, on the CPU, in seconds.

    Args:
        votes: a row a vote: a pandas or polars DataFrame, an Arrow table, a list of dicts, a dict of columns; or the
            path of a preference file of any layout.
        pair, annotator, vote: names of the columns. A vote is ``a``, ``b`` or ``tie`` (first, second; left, right;
            chosen, rejected), +1, -1 or 0, or a bool: relative to an order of the two responses that is the same in
            all rows of a pair. An empty annotator is somebody unnamed.
        good_enough, min_labels, doubtful: rules of the verdicts, labels to list; see
            :class:`nemo_rpo.crowd.crowd_settings.CrowdSettings`.
        columns: names of further columns, ``gold`` (the better response, where known), ``shown_first`` (which response
            was shown first), ``strength``, ``confidence``, ``seconds``, ``time``, ``family`` (annotators whose errors
            hang together), ``topic``. Columns of these names are used anyway.

    Raises:
        DataError: a column that is missing, or a value that is not understood.

    >>> votes = [(p, w, "a" if p % 2 else "b") for p in range(40) for w in ("ann", "bob", "cyd")]
    >>> votes += [(p, "dan", "a" if p % 4 < 2 else "b") for p in range(40)]
    >>> result = estimate_reliability([dict(pair=p, annotator=w, vote=v) for p, w, v in votes])
    >>> {row.annotator: row.verdict for row in result.annotators}
    {'dan': 'retrain', 'ann': 'trust', 'bob': 'trust', 'cyd': 'trust'}
    """
    settings = CrowdSettings(good_enough=good_enough, min_labels=min_labels, doubtful=doubtful)
    settings.check()
    unknown = sorted(columns.keys() - set(BESIDE))
    if unknown:
        raise DataError(f"estimate_reliability knows no column '{unknown[0]}'; it can be {', '.join(BESIDE)}")
    if isinstance(votes, str | Path):
        return assess(read_votes(votes), settings)
    table = columns_of(votes)
    names = {"pair": pair, "annotator": annotator, "vote": vote}
    names |= {name: name for name in BESIDE if name in table} | columns
    return assess(vote_table(table, names), settings)
