"""Many texts to ids in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

EncodeMany = Callable[[Sequence[str]], list[list[int]]]
_WORDS = 1 << 17  # 20 MB
_PROBE = ("", " a", "A b\n\nc  d", "\u00e9\u6f22 <s>x</s>")


def encode_many(tokenizer: Any) -> EncodeMany:
    """A function that encodes many texts, each as ``tokenizer.encode(text, add_special_tokens=False)`` does.

    The library behind a fast tokenizer takes them all at once, without the offsets that nobody needs here: a call costs
    as much as a hundred tokens. It is used only if both ways give a few test texts the same ids. It is made
    to remember more words than it would by itself: real texts have more than 10,000, and others are merged each time.
    """

    def one_by_one(texts: Sequence[str]) -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    backend = getattr(tokenizer, "backend_tokenizer", None)
    at_once = getattr(backend, "encode_batch_fast", None) or getattr(backend, "encode_batch", None)
    if at_once is None:
        return one_by_one

    if (remember := getattr(backend.model, "_resize_cache", None)) is not None:
        remember(_WORDS)

    def together(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in at_once(list(texts), add_special_tokens=False)]

    try:
        expected = one_by_one(_PROBE)  # this also takes truncation and padding off the backend
    except Exception:  # what the library raises for a word that a vocabulary without an unknown token does not have
        return one_by_one
    return together if together(_PROBE) == expected else one_by_one
