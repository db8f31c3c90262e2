"""One row of a preference file, whatever its layout."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nemo_rpo.errors import RowError

# Log-odds of a stated probability of 0 or 1 are held within those of one in a million.
_SUREST = 1e-6
Messages = list[dict[str, Any]]  # [{"role": "user", "content": "…"}, …]
Text = str | Messages
Given = dict[str, Any]
ABSENT = ""  # the other side of a completion judged alone


def log_odds(probability: float) -> float:
    """The confidence of a vote that is said to be right with this ``probability``.

    Were the annotator calibrated, this would be the evidence of the vote. How far he is, is for the label model to find
    out: it gives the vote of annotator k the evidence a_k + u_k times this (:mod:`nemo_rpo.em.label_model`).

    >>> round(log_odds(0.8), 4), log_odds(0.5), round(log_odds(1.0), 1)
    (1.3863, 0.0, 13.8)
    """
    p = min(max(probability, _SUREST), 1 - _SUREST)
    return math.log(p / (1 - p))


def characters(text: Text) -> int:
    """Length of a text, or of all messages with their calls of tools, in characters.

    >>> characters("four"), characters([{"role": "assistant", "content": "", "tool_calls": [{}]}])
    (4, 4)
    """
    if isinstance(text, str):
        return len(text)
    calls = (json.dumps(message["tool_calls"]) for message in text if message.get("tool_calls"))
    return sum(len(message.get("content") or "") for message in text) + sum(map(len, calls))


class VoteDetails(NamedTuple):
    """What is known of a vote beside who said what; NaN, 0 or ``None`` where it is not.

    Attributes:
        shown_first: +1 if the pair's ``chosen`` was shown first, −1 if ``rejected`` was; changes sign with the pair.
        strength: how much better the preferred response is, ≥ 0, on the file's own scale.
        confidence: how sure the annotator was, on the file's own scale; of a soft verdict its log-odds
            (:func:`log_odds`).
        seconds: time spent.
        time: when, seconds since 1970.
        family: annotators whose errors hang together, the model that a judge is built on, say.
    """

    shown_first: int = 0
    strength: float = math.nan
    confidence: float = math.nan
    seconds: float = math.nan
    time: float = math.nan
    family: str | None = None

    def turned(self) -> VoteDetails:
        """The same of the pair with ``chosen`` and ``rejected`` exchanged."""
        return self._replace(shown_first=-self.shown_first) if self.shown_first else self


NOTHING_ELSE = VoteDetails()


class Vote(NamedTuple):
    """One annotator's label on one pair: ``sign`` +1 for the row's ``chosen``, −1 for its ``rejected``, 0 for a tie."""

    annotator: str | None
    sign: int
    details: VoteDetails = NOTHING_ELSE

    def turned(self) -> Vote:
        """The same of the pair with ``chosen`` and ``rejected`` exchanged."""
        return Vote(self.annotator, -self.sign, self.details.turned())


@dataclass(frozen=True)
class PreferenceRow:
    """Two responses to one prompt and what was said about them; a ranking of more than two; or one judged alone.

    Attributes:
        file: the file as the user named it.
        row: 1-based line (JSONL) or record (Parquet) number.
        pair_id: the pair's id in the file, ``None`` without one.
        prompt: text or messages, without either response.
        chosen: the response recorded first or as the better one; every sign below is relative to it.
        rejected: the other response; :data:`ABSENT` where ``chosen`` was judged alone, and a vote of −1 calls it bad.
        votes: the labels, one an annotator and utterance; ties have sign 0. A ranking has one: +1, or 0 where two
            responses were ranked equal.
        columns: numeric side information (:data:`nemo_rpo.data.columns.NAMES`), relative to ``chosen``.
        topic: what the pair is about, ``None`` where that is not said.
        gold: +1 if the gold label is ``chosen``, −1 if ``rejected``, ``None`` without one.
        further: of a ranking, the responses after the first two, better ones first.
        rewards: of a ranking, one for each response; NaN for one without, empty where none has any.
        given: what the row gives a chat template beside the messages: ``tools``, ``chat_template_kwargs``, and
            ``system`` where the prompt is a text; each only where the row has it.
        prompt_repeated: whether the responses began with the prompt; here they are without it.
        alone: whether ``chosen`` was judged alone, by thumbs up and down say.
    """

    file: str
    row: int
    pair_id: str | None
    prompt: Text
    chosen: Text
    rejected: Text
    votes: tuple[Vote, ...]
    columns: dict[str, float] = field(default_factory=dict)
    gold: int | None = None
    topic: str | None = None
    further: tuple[Text, ...] = ()
    rewards: tuple[float, ...] = ()
    given: Given = field(default_factory=dict)
    prompt_repeated: bool = False
    alone: bool = False

    def require_pair(self, where_it_goes: str) -> None:
        """Raises :class:`RowError` of a completion judged alone: ``where_it_goes`` takes pairs."""
        if self.alone:
            problem = f"a completion judged alone, and {where_it_goes} takes pairs"
            raise RowError(self.file, self.row, problem, "judged_alone")

    @property
    def where(self) -> str:
        """``file:row``, for messages."""
        return f"{self.file}:{self.row}"

    @property
    def responses(self) -> tuple[Text, ...]:
        """All that there are, of a ranking the best first."""
        return (self.chosen,) if self.alone else (self.chosen, self.rejected, *self.further)

    @property
    def size(self) -> int:
        """Responses of the ranking that the row is; 2 of a pair, one of whose sides may be absent."""
        return 2 + len(self.further)
