"""Which rows speak of the same pair."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from nemo_rpo.data.rows import PreferenceRow, Text
from nemo_rpo.errors import RowError


class Sighting(NamedTuple):
    """A pair as one row shows it.

    Attributes:
        text: index of the pair; it counts up from 0 in the order of first rows.
        new: whether no earlier row showed it.
        turned: whether the row's ``chosen`` is the first row's ``rejected``.
    """

    text: int
    new: bool
    turned: bool


class PairIndex:
    """Numbers pairs as they come by; holds some hundred bytes a pair, never its text.

    Two rows speak of the same pair if they have the same pair id or, both without one, the same prompt (system message
    and tools included) and the same two responses in either order.

    Attributes:
        ids: of each pair, the file's id or the hash of the content.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._texts: dict[str, int] = {}  # pair id or content hash -> text
        self._digests: list[bytes] = []  # prompt, first and second response
        self._files: dict[str, str] = {}
        self._first: list[tuple[str, int]] = []
        self._by_content: dict[str, list[int]] | None = None  # of pairs with ids, made when it is asked for

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, row: PreferenceRow) -> Sighting:
        """Raises :class:`RowError` if the row has the pair id of an earlier one and other texts."""
        digests = (_prompt_digest(row), _digest(row.chosen), _digest(row.rejected))
        content = _content_id(*digests)
        # An id of the data and a content hash never meet: the hash is not looked up where there is an id.
        key = content if row.pair_id is None else f"id:{row.pair_id}"
        text = self._texts.setdefault(key, len(self))
        if text < len(self):
            return Sighting(text, False, self._is_turned(row, text, digests))
        self._digests.append(b"".join(digests))
        self._by_content = None
        self._first.append((self._files.setdefault(row.file, row.file), row.row))
        self.ids.append(content if row.pair_id is None else row.pair_id)
        return Sighting(text, True, False)

    def seen(self, row: PreferenceRow) -> Sighting | None:
        """:meth:`find` of a row that adds no pair: ``None`` if no earlier row showed it."""
        digests = (_prompt_digest(row), _digest(row.chosen), _digest(row.rejected))
        text = self._texts.get(_content_id(*digests) if row.pair_id is None else f"id:{row.pair_id}")
        return None if text is None else Sighting(text, False, self._is_turned(row, text, digests))

    def spoken_of(self, row: PreferenceRow) -> list[Sighting]:
        """The pairs that a row of another file speaks of, which adds none: the one with its id; else, where either file
        has no ids, those with its texts, which may have several ids.

        Raises:
            RowError: the row has the pair id of an earlier one and other texts.
        """
        if (found := self.seen(row)) is not None:
            return [found]
        digests = (_prompt_digest(row), _digest(row.chosen), _digest(row.rejected))
        # Two ids that differ are two pairs, whatever their texts; an id that only one file gives says nothing.
        known = [
            text for text in self._with_content(_content_id(*digests)) if row.pair_id is None or not self._named(text)
        ]
        return [Sighting(text, False, self._is_turned(row, text, digests)) for text in known]

    def first_row(self, text: int) -> tuple[str, int]:
        """File and row that showed a pair first."""
        return self._first[text]

    def named(self, pair_id: str) -> int | None:
        """The pair that a file calls so, or whose content has this hash; ``None`` if no row showed it."""
        return self._texts.get(f"id:{pair_id}", self._texts.get(pair_id))

    def _with_content(self, content: str) -> list[int]:
        if self._by_content is None:
            self._by_content = {}
            for text, digest in enumerate(self._digests):
                self._by_content.setdefault(_content_id(digest[:16], digest[16:32], digest[32:]), []).append(text)
        return self._by_content.get(content, [])

    def _named(self, text: int) -> bool:
        return self._texts.get(f"id:{self.ids[text]}") == text

    def content_turned(self) -> np.ndarray:
        """Whether the responses of each pair stand in the other order when sorted by a hash of their texts, bool [n]:
        a toss of a coin that every reading repeats."""
        return np.array([digest[16:32] > digest[32:] for digest in self._digests], dtype=bool)

    def _is_turned(self, row: PreferenceRow, text: int, digests: tuple[bytes, bytes, bytes]) -> bool:
        prompt, chosen, rejected = digests
        if prompt + chosen + rejected == self._digests[text]:
            return False
        if prompt + rejected + chosen == self._digests[text]:
            return True
        file, number = self._first[text]
        raise RowError(
            row.file,
            row.row,
            f"pair_id '{row.pair_id}' already stands for other texts at {file}:{number}; "
            "give each pair its own id, or set model.data.pair_id_key to the field that has it",
            "pair_id_conflict",
        )


def comparisons(row: PreferenceRow) -> Iterator[PreferenceRow]:
    """The pairs of a ranking as rows of their own, the best response with each of the others first; a pair itself.

    A pair of a ranking that has an id is called by it and by its own content, so that two rankings of the same
    responses give the same pairs the same ids.
    """
    if not row.further:
        yield row
        return
    digests, prompt = [_digest(text) for text in row.responses], _prompt_digest(row)
    for better, worse in combinations(range(len(digests)), 2):
        content = _content_id(prompt, digests[better], digests[worse])
        rewards = {"chosen_reward": row.rewards[better], "rejected_reward": row.rewards[worse]} if row.rewards else {}
        yield replace(
            row,
            pair_id=None if row.pair_id is None else f"{row.pair_id}:{content[:8]}",
            chosen=row.responses[better],
            rejected=row.responses[worse],
            columns={name: value for name, value in rewards.items() if not math.isnan(value)},
            further=(),
            rewards=(),
        )


def content_id(row: PreferenceRow) -> str:
    """The id of a pair that has none of its own: a hash of its prompt and its responses in either order."""
    return _content_id(_prompt_digest(row), _digest(row.chosen), _digest(row.rejected))


def _prompt_digest(row: PreferenceRow) -> bytes:
    # The same words with other tools or another system message are another prompt.
    prompt = _digest(row.prompt)
    return hashlib.blake2b(prompt + _digest([row.given]), digest_size=16).digest() if row.given else prompt


def _digest(text: Text) -> bytes:
    # The type is hashed too: a message list is not the text that happens to spell it.
    content = "s" + text if isinstance(text, str) else "m" + json.dumps(text, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _content_id(prompt: bytes, chosen: bytes, rejected: bytes) -> str:
    return hashlib.blake2b(prompt + b"".join(sorted((chosen, rejected))), digest_size=16).hexdigest()
