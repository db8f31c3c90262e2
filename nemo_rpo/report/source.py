"""The texts behind a run's labels, from the files that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_rpo.conversion.merged import MergedPair, MergedPairs
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import as_paths
from nemo_rpo.data.files.spool import Spool
from nemo_rpo.data.formats import read_pairs
from nemo_rpo.errors import DataError
from nemo_rpo.report.run import Run

# Layouts that say which response was shown first.
_ORDERED = ("votes", "multipref")


@dataclass(frozen=True)
class SourcePair:
    """A pair of the data.

    Attributes:
        merged: texts and all labels; signs are relative to ``merged.first``.
        key: the pair's id in the record.
        labels: int64, for each signed vote of ``merged.votes``, in their order, its row in the record; empty for a pair
            that was left out of the training.
        ordered: whether ``merged.first`` was the response shown first.
    """

    merged: MergedPair
    key: str
    labels: np.ndarray
    ordered: bool


def training_files(run: Run, data: Sequence[Path] = ()) -> list[str]:
    """Where the training data are: ``data``, or without them where the run read them."""
    train = run.cfg.model.data.data_prefix.get("train")
    listed = [train] if isinstance(train, str) else train if isinstance(train, list) else []
    return list(map(str, data or listed))


class Source:
    """The training data of a run, pair by pair, beside the record of its labels.

    Args:
        data: files, where they are not (or no longer) where the run read them.

    Raises:
        DataError: a file is missing or cannot be read.
    """

    def __init__(self, run: Run, data: Sequence[Path] = ()) -> None:
        settings = run.cfg.model.data
        self._keys = RowFormat(settings.layout, settings.annotator_key, settings.pair_id_key, settings.columns)
        self._paths = as_paths(training_files(run, data), setting="--data", folders=True)
        self._run = run
        order = np.argsort(run.labels.pair_id, kind="stable")
        ids, start = np.unique(run.labels.pair_id[order], return_index=True)
        self._labels_of = dict(zip(ids.tolist(), np.split(order, start[1:]), strict=True))

    def __iter__(self) -> Iterator[SourcePair]:
        """Raises :class:`DataError` where the labels are not those that the run was trained on."""
        found = 0
        with Spool() as spool:
            for pair in MergedPairs(read_pairs(self._paths, self._keys), spool):
                labels = self._labels_of.get(pair.key, np.empty(0, np.int64))
                found += len(labels)
                self._check(pair, labels)
                yield SourcePair(pair, pair.key, labels, pair.layout in _ORDERED)
        if found != len(self._run.labels):
            raise self._changed(f"{len(self._run.labels) - found:,} labels of the record are not in it")

    def _check(self, pair: MergedPair, labels: np.ndarray) -> None:
        names = [vote.annotator for vote in pair.votes if vote.sign]
        if not len(labels):
            return
        known = self._run.annotators.id
        recorded = [known[k] for k in self._run.labels.annotator[labels]]
        if len(names) != len(recorded) or any(n is not None and n != r for n, r in zip(names, recorded, strict=True)):
            raise self._changed(f"other labels at {pair.where}")

    def _changed(self, what: str) -> DataError:
        files = ", ".join(map(str, self._paths))
        return DataError(f"{files} is not what {self._run.folder} was trained on ({what}); name that with --data")
