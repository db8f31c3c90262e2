"""The table of annotators: who stands behind each index of η."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nemo_rpo.errors import DataError

VIRTUAL = "all"  # the one annotator of labels that carry no id


@dataclass(frozen=True)
class Annotator:
    """One line of the table.

    Attributes:
        id: the id in the data.
        labels: signed labels given (a tie is no label).
        first_seen: ``file:row`` of the first row that names them.
    """

    id: str
    labels: int
    first_seen: str


class AnnotatorTable:
    """Annotator ids in a fixed order, so that index k means the same annotator in η, the data and every report.

    A new table is sorted by id, hence independent of the order of rows and of ranks. :meth:`extended` appends, hence
    leaves every index that a checkpoint already uses in place.
    """

    def __init__(self, annotators: Iterable[Annotator]) -> None:
        self.annotators = list(annotators)
        self._index = {annotator.id: k for k, annotator in enumerate(self.annotators)}
        if len(self._index) != len(self.annotators):
            raise DataError("an annotator table lists the same id twice")

    @classmethod
    def sorted(cls, annotators: Iterable[Annotator]) -> AnnotatorTable:
        """The table of these annotators in the order of their ids."""
        return cls(sorted(annotators, key=lambda annotator: annotator.id))

    def __len__(self) -> int:
        return len(self.annotators)

    def __contains__(self, annotator_id: object) -> bool:
        return annotator_id in self._index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnnotatorTable) and self.annotators == other.annotators

    @property
    def ids(self) -> list[str]:
        """The ids, in the order of η."""
        return [annotator.id for annotator in self.annotators]

    @property
    def labels(self) -> np.ndarray:
        """Signed labels of each annotator, int64 [K]."""
        return np.array([annotator.labels for annotator in self.annotators], dtype=np.int64)

    def index(self, annotator_id: str) -> int:
        """The index of an annotator in η; KeyError for an unknown id."""
        return self._index[annotator_id]

    def extended(self, data: AnnotatorTable, *, allow_new: bool) -> AnnotatorTable:
        """This table, continued with the annotators of ``data`` it lacks, sorted by id; labels counted in ``data``.

        Raises:
            DataError: there is one and ``allow_new`` is off; names the annotator and the row.
        """
        new = sorted((annotator for annotator in data.annotators if annotator.id not in self), key=lambda a: a.id)
        if new and not allow_new:
            others = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
            raise DataError(
                f"{new[0].first_seen}: annotator '{new[0].id}'{others} is not among the {len(self)} this run knows; "
                "set model.data.allow_new_annotators=true to let new ones join"
            )
        known = [
            data.annotators[data.index(a.id)] if a.id in data else Annotator(a.id, 0, a.first_seen)
            for a in self.annotators
        ]
        return AnnotatorTable([*known, *new])

    def positions(self, table: AnnotatorTable, unknown: int | None = None) -> np.ndarray:
        """Where this table's annotators stand in ``table``: int64 [K], ``unknown`` for those it lacks (None: none)."""
        return np.array(
            [table.index(a.id) if unknown is None or a.id in table else unknown for a in self.annotators],
            dtype=np.int64,
        )

    def save(self, path: Path) -> None:
        """JSONL, one annotator a line in index order."""
        lines = (json.dumps(asdict(annotator), ensure_ascii=False) for annotator in self.annotators)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> AnnotatorTable:
        """Reads the table that :meth:`save` wrote."""
        with path.open(encoding="utf-8") as file:
            return cls(Annotator(**json.loads(line)) for line in file)
