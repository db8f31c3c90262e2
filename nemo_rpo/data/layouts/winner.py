"""Layouts that name a winner a row: NeMo-Aligner's and TRL's (plain, conversational, explicit or implicit prompt)."""

from __future__ import annotations

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import Messages, PreferenceRow, Text, Vote

ASSISTANT_TURN = "\n\nAssistant:"  # as in Anthropic's HH data, the usual plain text without a prompt field
_PROMPTS_DIFFER = "different_prompts"


def nemo_aligner(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "chosen_response", "rejected_response"}``, the prompt text or messages; rewards are optional."""
    fields = Fields(record)
    prompt = fields.conversation("prompt")
    return _row(fields, keys, prompt, fields.conversation("chosen_response"), fields.conversation("rejected_response"))


def hf(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "chosen", "rejected"}`` as TRL reads it. Without ``prompt`` it is what the two sides share."""
    fields = Fields(record)
    chosen, rejected = fields.conversation("chosen"), fields.conversation("rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise fields.error("'chosen' and 'rejected' must both be strings or both be lists of messages")
    prompt = fields.conversation("prompt") if fields.values.get("prompt") is not None else None
    if isinstance(chosen, str):
        if prompt is None:
            prompt, chosen, rejected = _split_dialogue(fields, chosen, rejected)
    elif prompt is None or chosen[0]["role"] != "assistant":
        # Data sets in the manner of UltraFeedback repeat the prompt at the head of both sides.
        shared, chosen, rejected = split_messages(fields, chosen, rejected)
        if prompt is not None and not _says(shared, prompt):
            raise fields.error(
                "'chosen' and 'rejected' are whole conversations, and field 'prompt' is not in them", _PROMPTS_DIFFER
            )
        prompt = shared
    return _row(fields, keys, prompt, chosen, rejected)


def _row(fields: Fields, keys: RowFormat, prompt: Text, chosen: Text, rejected: Text) -> PreferenceRow:
    vote = Vote(fields.annotator(keys), +1)
    return PreferenceRow(
        fields.record.file, fields.record.row, fields.pair_id(keys), prompt, chosen, rejected, (vote,), fields.columns()
    )


def _says(conversation: Messages, prompt: Text) -> bool:
    if isinstance(prompt, str):
        return any(message["content"].strip() == prompt.strip() for message in conversation)
    return all(message in conversation for message in prompt)


def split_messages(
    fields: Fields, chosen: Messages, rejected: Messages, names: tuple[str, str] = ("chosen", "rejected")
) -> tuple[Messages, Messages, Messages]:
    """Two whole conversations as the prompt that they share, and what each answers.

    Args:
        names: of the fields that hold them, for messages.

    Raises:
        RowError: they differ before the assistant's turn, or share nothing.
    """
    shared = 0
    # The last message of either side is a response, also when the two are the same.
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    for name, side in zip(names, (chosen, rejected), strict=True):
        if side[shared]["role"] != "assistant":
            raise fields.error(
                f"'{names[0]}' and '{names[1]}' answer different prompts: message {shared + 1} of '{name}' is "
                f"the first that differs and is the {side[shared]['role']}'s",
                _PROMPTS_DIFFER,
            )
    if shared == 0:
        raise fields.error(f"field 'prompt' is missing, and '{names[0]}' and '{names[1]}' start with the response")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_dialogue(fields: Fields, chosen: str, rejected: str) -> tuple[str, str, str]:
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    prefix = chosen[: min(len(chosen), len(rejected)) if same is None else same]
    turn = prefix.rfind(ASSISTANT_TURN)
    if turn < 0:
        # The longest common prefix would cut inside a word, or take the shared first words of two answers for a prompt.
        raise fields.error(
            f"field 'prompt' is missing, and 'chosen' and 'rejected' share no {ASSISTANT_TURN.strip()!r} turn to "
            f"end one; fields seen: {', '.join(sorted(fields.values))}",
            _PROMPTS_DIFFER if ASSISTANT_TURN in chosen and ASSISTANT_TURN in rejected else "bad_field",
        )
    cut = turn + len(ASSISTANT_TURN)
    return chosen[:cut], chosen[cut:], rejected[cut:]
