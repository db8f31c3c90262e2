"""A second reading of files, for what the table of votes does not keep: the texts behind its pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_rpo.crowd.factors.answer_features import FEATURES, content_of, declared, features
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import as_paths
from nemo_rpo.data.formats import read_parsed
from nemo_rpo.data.identity import PairIndex, comparisons
from nemo_rpo.data.rows import Text
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError, RowError


class PairTexts(NamedTuple):
    """A pair as the first row that shows it has it: ``first`` is that row's chosen; ``fields`` are the whole row's."""

    prompt: Text
    first: Text
    second: Text
    fields: Mapping[str, Any]
    where: str


def texts_of_pairs(paths: Sequence[Path], keys: RowFormat, pairs: int) -> Iterator[PairTexts]:
    """The pairs of :class:`nemo_rpo.data.vote_ledger.VoteReader` in their order; rows that it left out are left out.

    Raises:
        DataError: the files have changed since, or hold completions judged alone.
    """
    index = PairIndex()
    checked = as_paths(list(paths), setting="the path", folders=True)
    for parsed in read_parsed(checked, keys, _left_out):
        for row in comparisons(parsed.row):
            row.require_pair("a comparison of answers")
            try:
                new = index.find(row).new
            except RowError:
                continue
            if new:
                yield PairTexts(row.prompt, row.chosen, row.rejected, parsed.record.fields, row.where)
    if len(index) != pairs:
        raise DataError(f"the files hold {len(index):,} pairs now and {pairs:,} when the votes were read")


def feature_differences(
    paths: Sequence[Path],
    keys: RowFormat,
    table: VoteTable,
    names: Sequence[str] = tuple(FEATURES),
    columns: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Features of the first response minus those of the second, float64 [n, d + c], and the prompt of each pair, int64
    [n]; in the order of ``table``, the one that :class:`nemo_rpo.data.vote_ledger.VoteReader` gave.

    Raises:
        DataError: as :func:`texts_of_pairs`; a pair without one of the ``columns``.
    """
    found = np.empty((table.pairs, len(names) + len(columns)))
    prompts: dict[str, int] = {}
    prompt = np.empty(table.pairs, dtype=np.int64)
    for i, pair in enumerate(texts_of_pairs(paths, keys, table.pairs)):
        prompt[i] = prompts.setdefault(content_of(pair.prompt), len(prompts))
        text = features(pair.prompt, pair.first, names) - features(pair.prompt, pair.second, names)
        found[i] = np.concatenate((text, declared(pair.fields, pair.first, columns, pair.where)))
    return found, prompt


def turns(read: VoteTable, now: VoteTable) -> np.ndarray:
    """-1 for pairs whose responses ``now`` stand in the other order than when they were ``read``, else +1; [n]."""
    return np.where(read.content_turned != now.content_turned, -1.0, 1.0)


def _left_out(error: DataError) -> None:
    if not isinstance(error, RowError):
        raise error
