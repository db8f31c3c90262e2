"""Votes in long form, a row a vote, from the tables of Python. Shapes: v votes, n pairs, K annotators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.rows import VoteDetails, log_odds
from nemo_rpo.data.vote_details import DetailLedger
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError, missing_extra

WHERE = "row"  # the "file" of such votes, for messages: row:3
_FIRST = ("a", "first", "left", "chosen", "model_a", "response_a")
_SECOND = ("b", "second", "right", "rejected", "model_b", "response_b")
_SIGNS = dict.fromkeys(_FIRST, 1) | dict.fromkeys(_SECOND, -1) | dict.fromkeys(("tie", "both", "draw"), 0)
_DETAILS = ("strength", "confidence", "seconds")
# Columns that may stand beside pair, annotator and vote.
BESIDE = ("gold", "shown_first", *_DETAILS, "probability", "time", "family", "topic")


def columns_of(data: Any) -> dict[str, list]:
    """The columns of a pandas or polars DataFrame, an Arrow table or what hands one over (``__arrow_c_stream__``), a
    Hugging Face data set, a list of dicts or a dict of columns. A named index of pandas is a column too.

    Raises:
        DataError: something else, or columns of different lengths.
    """
    if hasattr(data, "collect"):  # polars, not computed yet
        data = data.collect()
    if isinstance(data, Mapping):
        columns = {str(name): list(values) for name, values in data.items()}
    elif hasattr(data, "to_pydict"):  # Arrow
        columns = data.to_pydict()
    elif hasattr(data, "iloc"):  # pandas
        columns = _of_pandas(data)
    elif hasattr(data, "get_columns"):  # polars
        columns = {column.name: column.to_list() for column in data.get_columns()}
    elif hasattr(data, "column_names") and hasattr(data, "to_dict"):  # a Hugging Face data set
        columns = data.to_dict()
    elif hasattr(data, "__arrow_c_stream__"):
        columns = _arrow_table(data)
    elif isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(row, Mapping) for row in data):
        names = dict.fromkeys(str(name) for row in data for name in row)
        columns = {name: [row.get(name) for row in data] for name in names}
    else:
        kinds = "a pandas or polars DataFrame, an Arrow table, a data set, a list of dicts or a dict of columns"
        raise DataError(f"votes must be {kinds}, not {type(data).__name__}")
    if len({len(values) for values in columns.values()}) > 1:
        raise DataError("the columns have different lengths")
    return columns


def _of_pandas(data: Any) -> dict[str, list]:
    if any(name is not None for name in data.index.names):
        data = data.reset_index()
    columns = {}
    for name in data.columns:
        values, missing = data[name].tolist(), data[name].isna().tolist()
        # pandas has three ways to say that nothing is there, and one of them cannot be compared with anything.
        columns[str(name)] = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    return columns


def _arrow_table(data: Any) -> dict[str, list]:
    try:
        import pyarrow
    except ImportError as exc:
        raise missing_extra("pyarrow", "data") from exc
    return pyarrow.table(data).to_pydict()


def vote_table(columns: Mapping[str, Sequence], names: Mapping[str, str]) -> VoteTable:
    """The table of votes in ``columns`` under ``names``: of ``pair``, ``annotator``, ``vote``, and of whatever is known
    beside.

    A vote is ``a``, ``b`` or ``tie`` (first, second; left, right; chosen, rejected), +1, -1 or 0, or a bool, True for
    the first; ``gold`` is the same. The first response is the same one in all rows of a pair.

    Raises:
        DataError: a column that is not there, or a value that is not understood; names the row, counted from 0.
    """
    for what, name in names.items():
        if name not in columns:
            raise DataError(f"there is no column '{name}' ({what}); the columns are {', '.join(map(str, columns))}")
    pair, pairs = _coded(columns[names["pair"]], names["pair"])
    people = [VIRTUAL if _is_blank(value) else str(value) for value in columns[names["annotator"]]]
    unnamed = np.array([_is_blank(value) for value in columns[names["annotator"]]], dtype=bool)
    sign = signs(columns[names["vote"]], names["vote"])
    ids, annotator = np.unique(np.array(people, dtype=object).astype(str), return_inverse=True)
    labels = np.bincount(annotator[sign != 0], minlength=len(ids))
    _, first = np.unique(annotator, return_index=True)
    table = AnnotatorTable(
        Annotator(str(name), int(labels[k]), f"{WHERE}:{first[k]}") for k, name in enumerate(ids.tolist())
    )
    ledger = DetailLedger()
    for details in _details(columns, names, len(sign)):
        ledger.add(details, turned=False)
    details = ledger.close()
    families = {name: i for i, name in enumerate(details.families)}
    _, shown = np.unique(pair, return_index=True)
    topics: dict[str, int] = {}
    topic = np.full(len(pairs), -1, dtype=np.int64)
    if "topic" in names:
        for p, value in zip(pair.tolist(), columns[names["topic"]], strict=True):
            if not _is_blank(value) and topic[p] < 0:
                topic[p] = topics.setdefault(str(value), len(topics))
    return VoteTable(
        pair=pair,
        annotator=annotator.astype(np.int64),
        sign=sign,
        said=sign,
        weight=np.ones(len(sign), dtype=np.float32),
        unnamed=unnamed,
        file=np.zeros(len(sign), dtype=np.int64),
        row=np.arange(len(sign)),
        details=details,
        gold=_gold(columns, names, pair, pairs),
        topic=topic,
        lengths=np.zeros((len(pairs), 2), dtype=np.int32),
        alone=np.zeros(len(pairs), dtype=bool),
        pair_id=pairs,
        pair_file=np.zeros(len(pairs), dtype=np.int64),
        pair_row=shown,
        content_turned=np.zeros(len(pairs), dtype=bool),
        family=np.array([families.get(f, -1) for f in details.family_of(annotator, len(ids))], dtype=np.int64),
        annotators=table,
        topics=list(topics),
        families=details.families,
        files=[WHERE],
    )


def signs(values: Sequence, name: str) -> np.ndarray:
    """+1, -1 or 0 for every vote, int8 [v].

    >>> signs(["a", "B", "tie"], "vote").tolist(), signs([True, False], "vote").tolist()
    ([1, -1, 0], [1, -1])
    """
    found = np.zeros(len(values), dtype=np.int8)
    numbers = set()
    for row, value in enumerate(values):
        if isinstance(value, bool | np.bool_):
            sign = 1 if value else -1
        elif isinstance(value, str):
            sign = _SIGNS.get(value.strip().lower())
        elif isinstance(value, int | float | np.number) and value in (1, -1, 0):
            sign = int(value)
            numbers.add(sign)
        else:
            sign = None
        if sign is None:
            raise DataError(f"row {row}: '{name}' is {value!r}; it can be 'a', 'b' or 'tie', or +1, -1 or 0, or a bool")
        found[row] = sign
    if numbers == {0, 1}:
        raise DataError(
            f"'{name}' holds 1 and 0 but no -1, so 0 may be the second response or a tie: write a and b, or 1 and -1"
        )
    return found


def _details(columns: Mapping[str, Sequence], names: Mapping[str, str], votes: int) -> list[VoteDetails]:
    known: dict[str, list] = {}
    if "shown_first" in names:
        name = names["shown_first"]
        blank = [_is_blank(value) for value in columns[name]]
        told = signs(["tie" if b else v for b, v in zip(blank, columns[name], strict=True)], name)
        known["shown_first"] = told.tolist()
    for what in _DETAILS:
        if what in names:
            known[what] = [_number(value, names[what], row) for row, value in enumerate(columns[names[what]])]
    if "probability" in names:
        name = names["probability"]
        if "confidence" in names:
            raise DataError(f"the columns '{names['confidence']}' and '{name}' both say how sure votes are: drop one")
        stated = [_number(value, name, row) for row, value in enumerate(columns[name])]
        if wrong := [row for row, p in enumerate(stated) if p < 0 or p > 1]:
            raise DataError(f"row {wrong[0]}: '{name}' is {stated[wrong[0]]:g}; it must be a probability, from 0 to 1")
        known["confidence"] = [p if p != p else log_odds(p) for p in stated]
    if "time" in names:
        known["time"] = [_seconds(value, names["time"], row) for row, value in enumerate(columns[names["time"]])]
    if "family" in names:
        known["family"] = [None if _is_blank(value) else str(value) for value in columns[names["family"]]]
    return [VoteDetails(**{what: values[row] for what, values in known.items()}) for row in range(votes)]


def _gold(columns: Mapping[str, Sequence], names: Mapping[str, str], pair: np.ndarray, pairs: list[str]) -> np.ndarray:
    gold = np.zeros(len(pairs), dtype=np.int8)
    if "gold" in names:
        values = columns[names["gold"]]
        told = signs(["tie" if _is_blank(value) else value for value in values], names["gold"])
        for row, (p, sign) in enumerate(zip(pair.tolist(), told.tolist(), strict=True)):
            if sign and gold[p] == -sign:
                raise DataError(f"row {row}: pair '{pairs[p]}' has the opposite gold label in an earlier row")
            gold[p] = sign or gold[p]
    return gold


def _coded(values: Sequence, name: str) -> tuple[np.ndarray, list[str]]:
    index: dict[str, int] = {}
    codes = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if _is_blank(value):
            raise DataError(f"row {row}: '{name}' is empty; every vote needs its pair")
        codes[row] = index.setdefault(str(value), len(index))
    return codes, list(index)


def _number(value: Any, name: str, row: int) -> float:
    if _is_blank(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"row {row}: '{name}' is {value!r}; it must be a number") from None


def _seconds(value: Any, name: str, row: int) -> float:
    return value.timestamp() if not _is_blank(value) and hasattr(value, "timestamp") else _number(value, name, row)


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or (not isinstance(value, str) and value != value)
