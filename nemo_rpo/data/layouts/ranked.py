"""NeMo-RL's layout: completions with ranks, the lowest rank being the best."""

from __future__ import annotations

from nemo_rpo.data.files import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import PreferenceRow, Vote
from nemo_rpo.data.settings import RowFormat


def nemo_rl(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"context": messages, "completions": [{"rank": 0, "completion": messages}, {"rank": 1, …}]}``.

    Equal ranks are a tie, the first completion standing as ``chosen``.
    """
    fields = Fields(record)
    context, completions = fields.conversation("context"), fields.objects("completions")
    if len(completions) != 2:
        raise fields.error(f"field 'completions' holds {len(completions)} completions; a preference pair has 2")
    better, worse = sorted(completions, key=lambda completion: completion.integer("rank"))
    sign = 0 if better.integer("rank") == worse.integer("rank") else 1
    return PreferenceRow(
        record.file,
        record.row,
        fields.pair_id(keys),
        context,
        better.conversation("completion"),
        worse.conversation("completion"),
        (Vote(fields.annotator(keys), sign),),
        fields.columns(),
    )
