"""Ways in which a file, or the values in it, can be damaged."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

NASTY: list[Any] = [
    None, "", " ", "\x00", "\ud800", "é" * 50, "=1+1", "nan", "a", "b", "tie", "1.0", "1e400", "9007199254740993.0",
    0, -1, 1, 2**63, -(2**70), 10**400, 0.5, math.nan, math.inf, -0.0, True, False,
    [], {}, [[]], [None], [""], {"": None},
    [{"role": "user"}], [{"role": "assistant", "content": None}], [{"content": "x", "role": 3}], {"a": {"b": [1]}},
    "2024-13-45", "[1, 2", "{{ 1/0 }}", "x" * 5000,
]  # fmt: skip


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def damage_value(rng: random.Random, value: Any, times: int = 1) -> Any:
    """A copy of nested objects with some node replaced, left out, repeated, or given another name."""
    value = copy.deepcopy(value)
    for _ in range(times):
        holder, key = _some_place(rng, value)
        if holder is None:
            return rng.choice(NASTY)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{key}{rng.choice(['s', ' ', '_id', '.x'])}"] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 3:
            _, other = _some_holder(rng, value)
            holder[key] = copy.deepcopy(other)
        elif kind == 4 and rng.random() < 0.05:
            holder[key] = deep(rng.choice([5, 200]))
        else:
            holder[key] = copy.deepcopy(rng.choice(NASTY))  # damaged again, a shared one would come to hold itself
    return value


def _some_place(rng: random.Random, value: Any) -> tuple[Any, Any]:
    places: list[tuple[Any, Any]] = []

    def visit(of: Any) -> None:
        for key in list(of) if isinstance(of, dict) else range(len(of)):
            places.append((of, key))
            if isinstance(of[key], dict | list):
                visit(of[key])

    if isinstance(value, dict | list):
        visit(value)
    return rng.choice(places) if places else (None, None)


def _some_holder(rng: random.Random, value: Any) -> tuple[Any, Any]:
    holder, key = _some_place(rng, value)
    return (None, None) if holder is None else (key, holder[key])


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, cut off, taken out, repeated or put in."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        if not data:
            return data
        at, size = rng.randrange(len(data)), rng.choice([1, 1, 4, 64, 1024])
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + rng.randbytes(size) + data[at:]
        elif kind == 3:
            data = data[: at + size] + data[at:]
        elif kind == 4:
            data = data[:at] + rng.choice([b"{", b"}", b'"', b",", b"\n", b"\x00", b"\xff", b"\\"]) + data[at + 1 :]
        else:
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data
