"""The details of many votes as columns, of which only those exist that some vote has. Shapes: v votes, K annotators."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from nemo_rpo.data.rows import NOTHING_ELSE, VoteDetails

# float64 as in the file: a conversion writes what it has read, and float32 knows the time of day to two minutes.
DTYPES = dict.fromkeys(VoteDetails._fields, np.dtype(np.float64))
DTYPES |= {"shown_first": np.dtype(np.int8), "family": np.dtype(np.int64)}
UNKNOWN = {"shown_first": 0, "family": -1}  # of the others NaN


@dataclass(frozen=True)
class DetailTable:
    """Attributes:
    columns: [v] each under the names of :class:`nemo_rpo.data.rows.VoteDetails`, in the types of :data:`DTYPES`;
        ``family`` is an index into ``families``. Unknown: NaN, 0 for ``shown_first``, -1 for ``family``.
    families: their names.
    """

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    families: list[str] = field(default_factory=list)

    def take(self, which: np.ndarray, turned: np.ndarray | None = None) -> DetailTable:
        """Of the votes ``which`` (indices or bool); ``turned`` (bool, one for each taken) says whose pair is turned."""
        taken = {name: values[which] for name, values in self.columns.items()}
        if turned is not None and "shown_first" in taken:
            shown = taken["shown_first"]
            taken["shown_first"] = np.where(turned, -shown, shown).astype(shown.dtype)
        return DetailTable(taken, self.families)

    def of(self, vote: int) -> VoteDetails:
        """Those of one vote."""
        if not self.columns:
            return NOTHING_ELSE
        known = {name: values[vote].item() for name, values in self.columns.items()}
        known = {name: value for name, value in known.items() if value == value and value != UNKNOWN.get(name)}
        if "family" in known:
            known["family"] = self.families[known["family"]]
        return VoteDetails(**known) if known else NOTHING_ELSE

    def family_of(self, annotator: np.ndarray, annotators: int) -> list[str | None]:
        """The family [K] of each of the ``annotators``, the one that its first vote with one names; ``annotator`` is
        int64 [v].
        """
        found: list[str | None] = [None] * annotators
        if "family" in self.columns:
            known = np.flatnonzero(self.columns["family"] >= 0)[::-1]  # backwards: the first of each is written last
            for k, of in zip(annotator[known].tolist(), self.columns["family"][known].tolist(), strict=True):
                found[k] = self.families[of]
        return found


class DetailLedger:
    """Collects the details of votes in order; a vote without any costs nothing."""

    def __init__(self) -> None:
        self._votes = 0
        self._known: dict[str, tuple[array, array]] = {}  # of each column the votes that have it, and their values
        self._families: dict[str, int] = {}

    def add(self, details: VoteDetails, turned: bool) -> None:
        """Adds one vote's; ``turned`` where its row calls chosen what the pair calls rejected."""
        if details is not NOTHING_ELSE:
            of = details.turned() if turned else details
            for name, value in zip(VoteDetails._fields, of, strict=True):
                if value is not None and value == value and value != UNKNOWN.get(name):
                    votes, values = self._known.setdefault(name, (array("q"), array(DTYPES[name].char)))
                    votes.append(self._votes)
                    values.append(self._families.setdefault(value, len(self._families)) if name == "family" else value)
        self._votes += 1

    def close(self) -> DetailTable:
        """The columns of all votes so far."""
        columns = {}
        for name, (votes, values) in self._known.items():
            columns[name] = np.full(self._votes, UNKNOWN.get(name, np.nan), dtype=DTYPES[name])
            columns[name][np.frombuffer(votes, np.int64)] = np.frombuffer(values, DTYPES[name])
        return DetailTable(columns, list(self._families))
