"""Responses to prompts, whoever compared them: the rows of any layout of preferences, or of responses by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record, read_records
from nemo_rpo.data.formats import detect_layout, pairs_without_votes, read_parsed
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import Given, Text
from nemo_rpo.errors import DataError

PROMPT, RESPONSE = "prompt", "response"


@dataclass(frozen=True)
class PromptResponses:
    """One prompt with its responses, in the order of the row: the chosen one (a, or a ranking's best) first.

    ``file`` and ``row`` say where they stand, ``name`` is the row's own id, ``None`` without one.
    """

    file: str
    row: int
    name: str | None
    prompt: Text
    responses: tuple[Text, ...]
    given: Given = field(default_factory=dict)


def read_responses(paths: Sequence[Path], keys: RowFormat) -> Iterator[PromptResponses]:
    """Of files in any layout that :func:`nemo_rpo.data.formats.read_parsed` knows, labels or none, or with nothing but
    ``prompt``, ``response_a`` and ``response_b``, or ``prompt`` and ``response``, one response a row.

    Raises:
        DataError: a file that is missing or damaged, or a row that is neither; the message names it.
    """
    for path in paths:
        records = read_records(path)
        first = next(records, None)
        if first is None or isinstance(first, DataError) or not _is_alone(first):
            for parsed in read_parsed([path], keys, prepare=pairs_without_votes):
                row = parsed.row
                yield PromptResponses(row.file, row.row, row.pair_id, row.prompt, row.responses, row.given)
            continue
        for record in itertools.chain([first], records):
            if isinstance(record, DataError):
                raise record
            fields = Fields(record)
            name = fields.identity(keys.pair_id_key, required=False)
            texts = fields.conversation(PROMPT), (fields.conversation(RESPONSE),)
            yield PromptResponses(record.file, record.row, name, *texts)


def _is_alone(record: Record) -> bool:
    """A row of one response, which no layout of preferences takes for its own."""
    if not {PROMPT, RESPONSE} <= record.fields.keys():
        return False
    try:
        detect_layout(record)
    except DataError:
        return True
    return False
