"""From rows to the table of votes, one by one; some hundred bytes a vote and a pair are kept, never a text."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, as_paths
from nemo_rpo.data.formats import read_parsed
from nemo_rpo.data.identity import PairIndex, Sighting, comparisons
from nemo_rpo.data.pairs import share_of_ranking
from nemo_rpo.data.rows import PreferenceRow, Text
from nemo_rpo.data.vote_details import DetailLedger
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError, RowError


def read_votes(
    paths: Paths, keys: RowFormat | None = None, on_error: Callable[[DataError], None] | None = None
) -> VoteTable:
    """All votes of one or several files of any layout; a ranking counts as its pairs.

    Args:
        paths: files, or folders of saved data sets.
        keys: layout and keys.
        on_error: called with the error of every bad row, which is then left out; ``None`` raises the first one.

    Raises:
        DataError: a file that is missing, empty or damaged; without ``on_error`` also the first bad row.
    """
    ledger, pairs = VoteLedger(), PairIndex()
    for parsed in read_parsed(as_paths(paths, setting="the path", folders=True), keys, on_error):
        size = len(parsed.row.responses)
        for row in comparisons(parsed.row):
            try:
                ledger.add(row, pairs.find(row), size)
            except RowError as exc:
                if on_error is None:
                    raise
                on_error(exc)
    return ledger.close(pairs)


class VoteLedger:
    """Collects the votes of rows as they are read."""

    def __init__(self) -> None:
        self._integers = {name: array("q") for name in ("pair", "annotator", "file", "row")}
        self._small = {name: array("b") for name in ("sign", "said", "unnamed", "size")}
        self._details = DetailLedger()
        self._gold, self._topic, self._lengths = array("b"), array("q"), array("i")
        self._annotators: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._topics: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._small["sign"])

    def add(self, row: PreferenceRow, sighting: Sighting, size: int = 2) -> None:
        """Adds the votes of a row, a pair; ``size`` is the number of responses of the ranking that it is part of.

        Raises:
            RowError: an earlier row has the opposite gold label.
        """
        orientation = -1 if sighting.turned else 1
        self._add_pair(row, sighting, orientation)
        file = self._files.setdefault(row.file, len(self._files))
        for vote in row.votes:
            name = VIRTUAL if vote.annotator is None else vote.annotator
            annotator = self._annotators.setdefault(name, len(self._annotators))
            place = {"pair": sighting.text, "annotator": annotator, "file": file, "row": row.row}
            for column, value in place.items():
                self._integers[column].append(value)
            small = {
                "sign": vote.sign * orientation,
                "said": vote.sign,
                "unnamed": vote.annotator is None,
                "size": size,
            }
            for column, value in small.items():
                self._small[column].append(value)
            self._details.add(vote.details, sighting.turned)

    def _add_pair(self, row: PreferenceRow, sighting: Sighting, orientation: int) -> None:
        if sighting.new:
            self._gold.append(0)
            self._topic.append(-1)
            self._lengths.extend((_characters(row.chosen), _characters(row.rejected)))
            self._files.setdefault(row.file, len(self._files))
        gold = (row.gold or 0) * orientation
        if gold and self._gold[sighting.text] == -gold:
            problem = "the pair has the opposite gold label in an earlier row"
            raise RowError(row.file, row.row, problem, "gold_conflict")
        if gold:
            self._gold[sighting.text] = gold
        if row.topic is not None and self._topic[sighting.text] < 0:
            self._topic[sighting.text] = self._topics.setdefault(row.topic, len(self._topics))

    def close(self, pairs: PairIndex) -> VoteTable:
        """The table; ``pairs`` is the index that the sightings came from."""
        integers = {name: np.array(values, dtype=np.int64) for name, values in self._integers.items()}
        small = {name: np.array(values, dtype=np.int8) for name, values in self._small.items()}
        sizes = small.pop("size")
        place, annotators = self._sorted_annotators(integers, small["sign"], share_of_ranking(sizes))
        annotator, details = place[integers["annotator"]], self._details.close()
        families = {name: i for i, name in enumerate(details.families)}
        family = [families.get(name, -1) for name in details.family_of(annotator, len(annotators))]
        where = [pairs.first_row(pair) for pair in range(len(pairs))]
        return VoteTable(
            **integers | {"annotator": annotator},
            **small | {"unnamed": small["unnamed"].astype(bool)},
            weight=share_of_ranking(sizes).astype(np.float32),
            details=details,
            gold=np.array(self._gold, dtype=np.int8),
            topic=np.array(self._topic, dtype=np.int64),
            lengths=np.array(self._lengths, dtype=np.int32).reshape(-1, 2),
            pair_id=list(pairs.ids),
            pair_file=np.array([self._files[file] for file, _ in where], dtype=np.int64),
            pair_row=np.array([row for _, row in where], dtype=np.int64),
            content_turned=pairs.content_turned(),
            family=np.array(family, dtype=np.int64),
            annotators=annotators,
            topics=list(self._topics),
            families=details.families,
            files=list(self._files),
        )

    def _sorted_annotators(
        self, integers: dict[str, np.ndarray], sign: np.ndarray, share: np.ndarray
    ) -> tuple[np.ndarray, AnnotatorTable]:
        """The place of each annotator, in the order of appearance, in the sorted table; and the table."""
        annotator = integers["annotator"]
        labels = np.bincount(annotator, weights=share * (sign != 0), minlength=len(self._annotators)).round()
        _, first = np.unique(annotator, return_index=True)
        files = list(self._files)
        table = AnnotatorTable.sorted(
            Annotator(name, int(labels[k]), f"{files[integers['file'][first[k]]]}:{integers['row'][first[k]]}")
            for name, k in self._annotators.items()
        )
        return np.array([table.index(name) for name in self._annotators], dtype=np.int64), table


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(message.get("content") or "") for message in text)
