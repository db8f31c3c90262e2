"""What a file says of a vote beside who said what: order shown, strength, confidence, times, family; gold and topic."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping

from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import NOTHING_ELSE, VoteDetails, log_odds
from nemo_rpo.errors import DataError

SHOWN_FIRST, STRENGTH, TIME, FAMILY = "shown_first", "strength", "time", "family"
CONFIDENCE, PROBABILITY = "confidence", "probability"
OF_VOTE = frozenset((SHOWN_FIRST, STRENGTH, CONFIDENCE, PROBABILITY, "seconds", TIME, FAMILY))
GOLD, TOPIC = "gold", "topic"
# What the two responses are called: in a row that holds votes, and in one that names a winner.
A_B = {"a": +1, "b": -1}
CHOSEN_REJECTED = {"chosen": +1, "rejected": -1}

_MILLISECONDS = 1e11  # as seconds, the year 5138; as milliseconds, 1973
_NANOSECONDS = _MILLISECONDS * 1000**2
_RENAME = "; rename the field if it means something else"


def vote_details(fields: Fields, words: Mapping[str, int]) -> VoteDetails:
    """What stands in ``fields`` under the names above; ``words`` are what ``shown_first`` calls the two responses.

    Raises:
        RowError: a field of another type or kind; the message says which.
    """
    if OF_VOTE.isdisjoint(fields.values):
        return NOTHING_ELSE
    details = VoteDetails(
        side(fields, SHOWN_FIRST, words) or 0,
        at_least_0(fields, STRENGTH),
        _confidence(fields),
        at_least_0(fields, "seconds"),
        when(fields, TIME),
        fields.identity(FAMILY, required=False),
    )
    return NOTHING_ELSE if details == NOTHING_ELSE else details


def share(fields: Fields, name: str) -> float:
    """A number from 0 to 1; NaN where it is absent."""
    value = fields.number(name)
    if not (value != value or 0 <= value <= 1):
        raise _another_kind(fields, name, "a probability, from 0 to 1", fields.values[name])
    return value


def _confidence(fields: Fields) -> float:
    """As stated, or the log-odds of the probability that the vote is right, as its annotator states it."""
    stated = share(fields, PROBABILITY)
    if stated != stated:
        return fields.number(CONFIDENCE)
    if not math.isnan(fields.number(CONFIDENCE)):
        raise fields.error(f"fields '{CONFIDENCE}' and '{PROBABILITY}' both say how sure the vote is: drop one")
    return log_odds(stated)


def side(fields: Fields, name: str, words: Mapping[str, int]) -> int | None:
    """+1 or −1 by one of ``words``; ``None`` where the field is absent or blank."""
    value = fields.values.get(name)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    found = words.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise _another_kind(fields, name, " or ".join(f"'{word}'" for word in words), value)
    return found


def at_least_0(fields: Fields, name: str) -> float:
    """A number that is not negative; NaN where it is absent."""
    value = fields.number(name)
    if value < 0:
        raise _another_kind(fields, name, "0 or more, whichever side it speaks for", value)
    return value


def when(fields: Fields, name: str) -> float:
    """Seconds since 1970, from a number of (milli-, micro-, nano-) seconds, a date and time, or its text (ISO 8601).

    A time without a zone is UTC's: only differences count.
    """
    value = fields.values.get(name)
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str):
        value = _spelt(value.strip())
        if value != value:
            return math.nan
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=value.tzinfo or datetime.timezone.utc).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _NANOSECONDS * 1000:
        raise _another_kind(fields, name, "seconds since 1970, or a date and time (ISO 8601)", fields.values[name])
    while value >= _MILLISECONDS:  # or microseconds, or nanoseconds
        value /= 1000
    return float(value)


def _spelt(text: str) -> datetime.datetime | float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00") if text.endswith("Z") else text)
    except ValueError:
        return None


def _another_kind(fields: Fields, name: str, expected: str, value: object) -> DataError:
    return fields.wrong_type(name, expected, value, _RENAME)
