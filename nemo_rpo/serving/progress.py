"""How far a long stage is, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_EVERY_S = 0.5


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """``items`` as they are; a line on stderr counts them where that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    last = 0.0
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > _EVERY_S or number == total:
            last = time.monotonic()
            end = "\r\033[K" if number == total else ""
            print(f"\r{number:,} of {total:,} {what}", end=end, file=sys.stderr, flush=True)
