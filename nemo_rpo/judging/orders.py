"""Which response a judge is shown first, and what two verdicts on one pair are together.

A judge who leans to a place leans to a response, unless the order is a toss of a coin: then his leaning can be told
from his opinion. And a judge who is asked twice repeats himself: two orders of one judge are one vote (the same
answer), or a tie (a flip), never two votes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from nemo_rpo.data.rows import NOTHING_ELSE, Vote, VoteDetails, log_odds
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.verdicts import Shown, Verdict


def orders_of(pair: str, judge: str, orders: Literal["one", "both", "none"], seed: int) -> tuple[str, ...]:
    """The responses, ``a`` or ``b``, that are shown first: one by a coin that every run tosses alike, or both.

    >>> orders_of("p1", "j", "both", 0), orders_of("p1", "j", "none", 0)
    (('a', 'b'), ('',))
    """
    if orders == "none":
        return ("",)
    if orders == "both":
        return ("a", "b")
    coin = hashlib.blake2b(f"{seed}\0{judge}\0{pair}".encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1
    return ("ab"[coin],)


def asked_about(pair: str, names: Sequence[str], number: int | None, seed: int) -> list[str]:
    """The judges who are asked about a pair: ``number`` of them, the same whenever it is asked, or all.

    >>> len(asked_about("p1", ["j", "k", "l"], 2, 0)), asked_about("p1", ["j", "k"], None, 0)
    (2, ['j', 'k'])
    """
    if number is None:
        return list(names)

    def drawn(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{pair}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(names, key=drawn)[:number]


def shown(pairs: Sequence[JudgedPair], judge: str, orders: Literal["one", "both", "none"], seed: int) -> list[Shown]:
    """What a judge is to see of all pairs."""
    found = []
    for pair in pairs:
        for first in orders_of(pair.pair_id, judge, orders, seed):
            a, b = (pair.b, pair.a) if first == "b" else (pair.a, pair.b)
            found.append(Shown(pair.pair_id, pair.prompt, a, b, first, pair.fields))
    return found


def votes_of(verdicts: Iterable[Verdict], family: str | None = None) -> Iterator[tuple[str, Vote]]:
    """The pair and vote of one judge on each pair that it said something of.

    A single verdict keeps its slot. Two orders are collapsed: the same response twice is a vote for it, anything else a
    tie, without a slot; where one of them cannot be read there is no vote. The confidence of a vote is the log-odds of
    the probability stated for its side, of two orders of their mean.
    """
    by_pair: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_pair.setdefault(verdict.pair, []).append(verdict)
    for pair, said in by_pair.items():
        signs = [verdict.sign for verdict in said]
        if None in signs:
            continue
        sign = signs[0] if len(set(signs)) == 1 else 0
        slot = {"a": 1, "b": -1}.get(said[0].shown_first, 0) if len(said) == 1 else 0
        known = [p for verdict in said if (p := p_a(verdict)) is not None]
        confidence = math.nan
        if sign and len(known) == len(said):
            confidence = sign * log_odds(sum(known) / len(known))
        time = said[-1].time or math.nan
        details = VoteDetails(shown_first=slot, confidence=confidence, time=time, family=family)
        yield pair, Vote(said[0].judge, sign, NOTHING_ELSE if details == NOTHING_ELSE else details)


def p_a(verdict: Verdict) -> float | None:
    """Probability that the pair's response a is better, where the judge said one."""
    if verdict.p_first is None:
        return None
    return 1 - verdict.p_first if verdict.shown_first == "b" else verdict.p_first
