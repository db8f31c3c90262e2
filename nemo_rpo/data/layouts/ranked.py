"""Layouts that rank two or more responses to a prompt: NeMo-RL's, and a plain list."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import PreferenceRow, Text, Vote


def nemo_rl(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"context": messages, "completions": [{"rank": 0, "completion": messages}, {"rank": 1, …}, …]}``.

    The lowest rank is the best; a ``reward`` may stand beside each. Two completions of equal rank are a tie, the first
    standing as ``chosen``; a longer ranking with equal ranks is one as a whole.
    """
    fields = Fields(record)
    context, completions = fields.conversation("context"), fields.objects("completions")
    ordered = sorted(completions, key=lambda completion: completion.integer("rank"))
    sign = 1 if len({completion.integer("rank") for completion in ordered}) == len(ordered) else 0
    rewards = [completion.number("reward") for completion in ordered]
    return _row(fields, keys, context, [of.conversation("completion") for of in ordered], rewards, "completions", sign)


def rankings(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "responses": [best, …, worst]}``, each text or messages, with ``rewards``, a number for each (or
    null), where they are known.
    """
    fields = Fields(record)
    texts = fields.conversations("responses")
    rewards = fields.numbers("rewards") if fields.values.get("rewards") is not None else [math.nan] * len(texts)
    if len(rewards) != len(texts):
        raise fields.error(f"field 'rewards' holds {len(rewards)} numbers for {len(texts)} responses")
    return _row(fields, keys, fields.conversation("prompt"), texts, rewards, "responses", sign=1)


def _row(
    fields: Fields,
    keys: RowFormat,
    prompt: Text,
    texts: Sequence[Text],
    rewards: Sequence[float],
    name: str,
    sign: int,
) -> PreferenceRow:
    """Of two responses a pair as any other; ``rewards`` are NaN where unknown."""
    if len(texts) < 2:
        raise fields.error(f"field '{name}' holds {len(texts)} {name}; a preference has 2 or more")
    best, second, *further = texts
    known = not all(map(math.isnan, rewards))
    columns = fields.columns()
    if further and columns:
        raise fields.error(f"field '{next(iter(columns))}' speaks of two responses, and '{name}' holds {len(texts)}")
    if not further:
        of_pair = zip(("chosen_reward", "rejected_reward"), rewards, strict=True)
        columns |= {column: reward for column, reward in of_pair if not math.isnan(reward)}
    return PreferenceRow(
        fields.record.file,
        fields.record.row,
        fields.pair_id(keys),
        prompt,
        best,
        second,
        (Vote(fields.annotator(keys), sign),),
        columns,
        further=tuple(further),
        rewards=tuple(rewards) if further and known else (),
    )
