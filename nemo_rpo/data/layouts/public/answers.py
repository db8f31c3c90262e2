"""What label tools and platforms call the two responses, and how they spell an answer."""

from __future__ import annotations

import re
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import Text
from nemo_rpo.errors import DataError

# In the order of looking.
PROMPTS = ("prompt", "instruction", "question", "context", "input", "text")
SIDES = (
    ("response_a", "response_b"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response-1", "response-2"),
    ("answer1", "answer2"),
    ("answer_1", "answer_2"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
    ("output_1", "output_2"),
    ("generation-1", "generation-2"),
    ("reply_1", "reply_2"),
    ("left", "right"),
)
_SIDE = re.compile(
    r"(?:response|answer|option|model|completion|output|assistant|candidate|generation|summary|reply|choice|item)?"
    r"[-_ .]*(a|b|1|2)"
)
_PLACES = {"a": 1, "1": 1, "b": -1, "2": -1}
_WORDS = {"left": 1, "first": 1, "right": -1, "second": -1}
_TIES = (
    "tie",
    "tied",
    "draw",
    "equal",
    "same",
    "both",
    "neither",
    "no preference",
    "bothbad",
    "bothgood",
    "tiebothbad",
)
_WORDS |= dict.fromkeys(_TIES, 0)
_EXPECTED = "a, b or tie (or left and right, first and second, 1 and 2, the names of the two responses)"


def sign_of(fields: Fields, name: str, sides: tuple[str, ...] = ()) -> int | None:
    """+1 for the first response, −1 for the second, 0 for a tie; ``None`` where nothing is said.

    Args:
        sides: what else the two responses are called here.
    """
    value = fields.values.get(name)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str) and (isinstance(value, bool) or value not in (1, 2)):
        raise not_an_answer(fields, name, value)
    said = str(value).strip()
    if said in sides:
        return 1 if said == sides[0] else -1
    said = re.sub(r"[-_ ()]+", " ", said.lower()).strip().removesuffix(".0")
    if (found := _SIDE.fullmatch(said)) is not None:
        return _PLACES[found[1]]
    for word in (said, said.replace(" ", "")):
        if word in _WORDS:
            return _WORDS[word]
    raise not_an_answer(fields, name, value)


def not_an_answer(fields: Fields, name: str, value: Any) -> DataError:
    """The error of an answer that names neither response."""
    return fields.wrong_type(name, _EXPECTED, value)


def prompt_name(values: dict[str, Any]) -> str | None:
    """The field that holds the prompt."""
    return next((name for name in PROMPTS if name in values), None)


def side_names(values: dict[str, Any]) -> tuple[str, str] | None:
    """The fields that hold the two responses."""
    return next((names for names in SIDES if names[0] in values and names[1] in values), None)


def texts(fields: Fields) -> tuple[Text, Text, Text]:
    """Prompt and both responses, wherever they stand.

    Raises:
        RowError: none of the usual names is there.
    """
    prompt, sides = prompt_name(fields.values), side_names(fields.values)
    if prompt is None or sides is None:
        what = "prompt" if prompt is None else "pair of responses"
        usual = ", ".join(PROMPTS) if prompt is None else ", ".join("/".join(names) for names in SIDES)
        seen, of = ", ".join(sorted(fields.values)), fields.path.rstrip(".") or "the row"
        raise fields.error(
            f"no {what} among the fields of {of} ({seen}); "
            f"the usual names are {usual}; name yours with --columns or model.data.columns"
        )
    return fields.conversation(prompt), fields.conversation(sides[0]), fields.conversation(sides[1])


def annotator(fields: Fields, keys: RowFormat, name: str) -> str | None:
    """The annotator under the layout's own name, or under the key that the user gave."""
    return fields.annotator(keys) if keys.annotator_required else fields.identity(name, required=False)


def no_annotator(fields: Fields, keys: RowFormat, layout: str) -> None:
    """Raises :class:`RowError` where an annotator was asked for by name of a layout that has none."""
    if keys.annotator_required and keys.annotator_key not in fields.values:
        raise fields.error(
            f"layout '{layout}' names no annotator, and field '{keys.annotator_key}' is missing: a place in a list is "
            "no person; leave the annotator's key out, and all labels share one reliability"
        )
