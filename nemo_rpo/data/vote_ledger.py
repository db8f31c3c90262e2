"""From rows to the table of votes, one by one; some hundred bytes a vote and a pair are kept, never a text."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, as_paths
from nemo_rpo.data.formats import LAYOUTS, read_parsed
from nemo_rpo.data.identity import PairIndex, Sighting, comparisons
from nemo_rpo.data.pairs import share_of_ranking
from nemo_rpo.data.rows import PreferenceRow, characters
from nemo_rpo.data.vote_details import DetailLedger
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError, RowError

log = logging.getLogger(__name__)


def read_votes(
    paths: Paths, keys: RowFormat | None = None, on_error: Callable[[DataError], None] | None = None
) -> VoteTable:
    """All votes of one or several files of any layout; a ranking counts as its pairs. See :class:`VoteReader`, whose
    warnings are logged.
    """
    reader = VoteReader(keys, on_error)
    reader.read(paths)
    for warning in reader.warnings():
        log.warning("%s", warning)
    return reader.close()


class VoteReader:
    """Reads the votes of files one after the other; what is said of one pair in several files comes together.

    A label between two responses of the same text says nothing, unless an id and an order of the responses that is not
    the label tell them apart: its pair stays, without it.

    Args:
        keys: layout and keys.
        on_error: called with the error of every bad row, which is then left out; ``None`` raises the first one.

    Attributes:
        same_text: labels that were left out because their responses are the same.
    """

    def __init__(self, keys: RowFormat | None = None, on_error: Callable[[DataError], None] | None = None) -> None:
        self.keys, self.on_error = keys or RowFormat(), on_error
        self.ledger, self.pairs = VoteLedger(), PairIndex()
        self.same_text = self._no_prompt = self._rows = 0

    def read(self, paths: Paths) -> None:
        """All rows of files, or of folders of saved data sets.

        Raises:
            DataError: a file that is missing, empty or damaged; without ``on_error`` also the first bad row.
        """
        for parsed in read_parsed(as_paths(paths, setting="the path", folders=True), self.keys, self.on_error):
            self.add(parsed.row, LAYOUTS[parsed.layout].labelled)

    def add(self, row: PreferenceRow, names_winner: bool = False) -> None:
        """One row; of a ranking each of its pairs. ``names_winner``: the order of its responses is what was said."""
        size = row.size
        if row.pair_id is None:
            self._rows += 1
            self._no_prompt += isinstance(row.prompt, str) and not row.prompt.strip()
        for pair in comparisons(row):
            if (names_winner or pair.pair_id is None) and _look_the_same(pair):
                self.same_text += len(pair.votes)
                pair = replace(pair, votes=(), gold=None)
            try:
                self.ledger.add(pair, self.pairs.find(pair), size)
            except RowError as exc:
                if self.on_error is None:
                    raise
                self.on_error(exc)

    def close(self) -> VoteTable:
        """The table of all that was read."""
        return self.ledger.close(self.pairs)

    def warnings(self) -> list[str]:
        """Where texts are missing that would tell responses or pairs apart, one line each; empty is good news."""
        found = []
        if self.same_text:
            found.append(
                f"left out: {counted(self.same_text, 'label')} between two responses of the same text, or both empty: "
                "nothing says which was meant; nemo-rpo validate names the rows"
            )
        if 0 < self._no_prompt < self._rows:
            found.append(
                f"{counted(self._no_prompt, 'row')} without a prompt and a {self.keys.pair_id_key}: where the two "
                "responses are the same too, they count as labels of one pair"
            )
        return found


def _look_the_same(pair: PreferenceRow) -> bool:
    """Whether nothing tells the responses of a pair apart."""
    if pair.alone:
        return False
    blank = [isinstance(text, str) and not text.strip() for text in (pair.chosen, pair.rejected)]
    return pair.chosen == pair.rejected or all(blank)


class VoteLedger:
    """Collects the votes of rows as they are read."""

    def __init__(self) -> None:
        self._integers = {name: array("q") for name in ("pair", "annotator", "file", "row")}
        self._small = {name: array("b") for name in ("sign", "said", "unnamed", "size")}
        self._details = DetailLedger()
        self._gold, self._topic, self._lengths = array("b"), array("q"), array("i")
        self._alone = array("b")
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
        file, integers, small = self._files.setdefault(row.file, len(self._files)), self._integers, self._small
        for vote in row.votes:
            name = VIRTUAL if vote.annotator is None else vote.annotator
            annotator = self._annotators.setdefault(name, len(self._annotators))
            integers["pair"].append(sighting.text)
            integers["annotator"].append(annotator)
            integers["file"].append(file)
            integers["row"].append(row.row)
            small["sign"].append(vote.sign * orientation)
            small["said"].append(vote.sign)
            small["unnamed"].append(vote.annotator is None)
            small["size"].append(size)
            self._details.add(vote.details, sighting.turned)

    def _add_pair(self, row: PreferenceRow, sighting: Sighting, orientation: int) -> None:
        if sighting.new:
            self._gold.append(0)
            self._topic.append(-1)
            self._lengths.extend((characters(row.chosen), characters(row.rejected)))
            self._alone.append(row.alone)
            self._files.setdefault(row.file, len(self._files))
        if row.gold:
            self.add_gold(sighting.text, row.gold * orientation, row.file, row.row)
        if row.topic is not None and self._topic[sighting.text] < 0:
            self._topic[sighting.text] = self._topics.setdefault(row.topic, len(self._topics))

    def add_gold(self, pair: int, gold: int, file: str, row: int) -> None:
        """The truth of a pair in its canonical order, as a row says it.

        Raises:
            RowError: an earlier row has the opposite one.
        """
        if self._gold[pair] == -gold:
            raise RowError(file, row, "the pair has the opposite gold label in an earlier row", "gold_conflict")
        self._gold[pair] = gold

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
            alone=np.array(self._alone, dtype=bool),
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
