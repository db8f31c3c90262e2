"""The texts that a report quotes, and which responses were shown first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.data.rows import Text
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import Source, SourcePair

_LENGTH = 1500  # characters of one quoted text


@dataclass(frozen=True)
class Excerpt:
    """What a label says: the prompt, the response it prefers, the other one, and where the pair stands."""

    prompt: str
    preferred: str
    other: str
    where: str


@dataclass(frozen=True)
class Texts:
    """Excerpts by row of the labels; ``prefers_first`` int8 [v], +1 where a label prefers the response shown first, -1
    where the other, 0 where the layout does not say.
    """

    excerpts: dict[int, Excerpt]
    prefers_first: np.ndarray


def read_texts(run: Run, source: Source, rows: np.ndarray) -> Texts:
    """The texts behind ``rows`` of the run's labels. Raises :class:`DataError` as :class:`Source` does."""
    wanted, excerpts = set(rows.tolist()), {}
    prefers_first = np.zeros(len(run.labels), np.int8)
    for pair in source:
        signed = [vote.sign for vote in pair.merged.votes if vote.sign]
        for row, sign in zip(pair.labels.tolist(), signed, strict=False):
            if pair.ordered and not pair.merged.alone:
                prefers_first[row] = sign
            if row in wanted:
                excerpts[row] = _excerpt(pair, sign)
    return Texts(excerpts, prefers_first)


def _excerpt(pair: SourcePair, sign: int) -> Excerpt:
    first, second = as_text(pair.merged.first), as_text(pair.merged.second)
    preferred, other = (first, second) if sign > 0 else (second, first)
    return Excerpt(_cut(as_text(pair.merged.prompt), keep_end=True), _cut(preferred), _cut(other), pair.merged.where)


def as_text(text: Text) -> str:
    """Messages with their roles, a text as it is."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in text)


def _cut(text: str, keep_end: bool = False) -> str:
    text = text.strip()
    if len(text) <= _LENGTH:
        return text
    return "… " + text[-_LENGTH:] if keep_end else text[:_LENGTH] + " …"
