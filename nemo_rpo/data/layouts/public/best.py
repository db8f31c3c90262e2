"""The best of several responses as pairs: it, and each of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import PreferenceRow, Text, Vote


def best_of(
    fields: Fields,
    keys: RowFormat,
    prompt: Text,
    responses: Sequence[Text],
    best: int | None,
    vote: Callable[[int], Vote],
    topic: str | None = None,
) -> list[PreferenceRow]:
    """Rows of the pairs that the choice says something about, the two responses in the file's order; what the others
    are to each other it does not say. Without a ``best`` the first two, unlabelled, so that the row is counted.

    Args:
        vote: the vote of a sign.
    """
    pairs = [(0, 1)] if best is None else [tuple(sorted((best, i))) for i in range(len(responses)) if i != best]
    pair_id = fields.pair_id(keys)
    rows = []
    for i, j in pairs:
        cast = () if best is None else (vote(1 if best == i else -1),)
        name = None if pair_id is None else pair_id if len(pairs) == 1 else f"{pair_id}:{i}{j}"
        of = (fields.record.file, fields.record.row, name, prompt, responses[i], responses[j])
        rows.append(PreferenceRow(*of, cast, topic=topic))
    return rows
