"""The contract between whoever wants verdicts and whatever gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from nemo_rpo.data.rows import Text

FIRST, SECOND, TIE = "first", "second", "tie"
Said = Literal["first", "second", "tie"]
# Columns of verdicts.parquet and their types. A row is named by its pair, judge and order.
KEYS = ("pair", "judge", "shown_first")
COLUMNS = {
    "pair": "string",
    "judge": "string",
    "shown_first": "string",
    "said": "string",
    "p_first": "float64",
    "raw": "string",
    "latency": "float64",
    "time": "float64",
    "error": "string",
}


class Shown(NamedTuple):
    """Two responses to one prompt in the order in which a judge is to see them.

    Attributes:
        pair: the pair's id.
        prompt: a text or messages.
        first, second: the responses.
        shown_first: ``a`` or ``b``, which of the pair's responses ``first`` is; empty for a judge to whom order means
            nothing (a reward model, a program that looks at one response at a time), who gets a, then b.
        fields: what else the pair's row holds: the right answer, or unit tests, for programs.
    """

    pair: str
    prompt: Text
    first: Text
    second: Text
    shown_first: str
    fields: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Verdict:
    """What one judge said of two responses in one order. A row of verdicts.parquet.

    Attributes:
        pair, judge, shown_first: of whom, by whom, in which order.
        said: ``first``, ``second``, ``tie``, or None where no verdict could be read in the answer.
        p_first: probability that the first is better, where the judge gives one.
        raw: the answer as it came, shortened; of programs and reward models the scores.
        latency: seconds that it took.
        time: when, seconds since 1970.
        error: what went wrong, where the judge could not be asked.
    """

    pair: str
    judge: str
    shown_first: str
    said: Said | None
    p_first: float | None = None
    raw: str = ""
    latency: float = 0.0
    time: float = field(default=0.0)
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """As a row of verdicts.parquet."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Verdict:
        """From a row of verdicts.parquet."""
        return cls(**{name: row[name] for name in COLUMNS})

    @property
    def sign(self) -> int | None:
        """+1 for the pair's response a, -1 for b, 0 a tie; None without a verdict."""
        if self.said is None:
            return None
        if self.said == TIE:
            return 0
        return 1 if (self.said == FIRST) == (self.shown_first != "b") else -1


class Judge:
    """What gives verdicts.

    Attributes:
        name: the annotator's id in the votes.
        family: judges of one family err together; None for one by himself.
        orders: ``one`` (drawn at random for every pair), ``both``, or ``none`` where order means nothing.
        tried: whether he is asked about a few pairs first, since a verdict costs something.
    """

    name: str
    family: str | None
    orders: Literal["one", "both", "none"]
    tried = False

    def outcome(self) -> dict[str, Any]:
        """Whatever his verdicts depend on, as plain data: verdicts of another outcome are not taken for his."""
        raise NotImplementedError

    def look_at(self, shown: Sequence[Shown]) -> None:
        """All that he is ever asked about, before the first verdict: for judges whose verdict on one pair depends on
        the others."""

    def judge(self, shown: Iterable[Shown]) -> Iterator[Verdict]:
        """A verdict on each, as soon as it is there, in any order.

        Raises:
            RPOError: it cannot go on. What came before is to be kept; only what is missing needs asking again.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Ends whatever was started for this judge."""
