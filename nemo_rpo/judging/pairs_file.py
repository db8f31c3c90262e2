"""``pairs.parquet``: pairs of a policy's own responses, and which of them are made.

A pair is named by its prompt and the two samples, ``PROMPT:0-3``; ``a`` is the sample with the lower index, which owes
nothing to any verdict. Messages stand as JSON, beside an empty text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol

from nemo_rpo.data.files.stage import read_table, write_table
from nemo_rpo.data.rows import Text
from nemo_rpo.errors import DataError
from nemo_rpo.judging.judged_pairs import JudgedPair

COLUMNS = {
    "pair_id": "string",
    "prompt": "string",
    "response_a": "string",
    "response_b": "string",
    "messages": "string",
    "gold": "string",
    "fields": "string",
}
_SIDES = {1: "a", -1: "b"}


class Sample(Protocol):
    """A response of :mod:`nemo_rpo.sampling`, as far as it matters here."""

    prompt: str
    index: int
    text: str


def pairs_of_samples(
    prompts: Mapping[str, tuple[Text, Mapping[str, Any]]],
    samples: Iterable[Sample],
    which: Literal["random", "all"],
    seed: int,
) -> list[JudgedPair]:
    """One random pair of every prompt, or all of them; equal texts make no pair.

    Args:
        prompts: by key, the prompt and whatever else its row holds.
        samples: whole ones.
        which: see there. Best-versus-worst is chosen of *all* pairs once they are judged.
        seed: of the random ones, which do not depend on the order of the samples.
    """
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    found = []
    for key, (text, fields) in prompts.items():
        of_prompt = sorted(by_prompt.get(key, ()), key=lambda sample: sample.index)
        several = [(a, b) for a, b in combinations(of_prompt, 2) if a.text != b.text]
        if which == "random" and several:
            several = [random.Random(f"{seed}\0{key}").choice(several)]
        for a, b in several:
            found.append(JudgedPair(f"{key}:{a.index}-{b.index}", text, a.text, b.text, fields=dict(fields)))
    return found


def write_pairs(out: Path, pairs: Sequence[JudgedPair], inputs: str) -> None:
    """The pairs without votes; ``inputs`` is the fingerprint of what they are made of.

    Raises:
        ConfigError: ``out`` cannot be written.
    """
    rows = []
    for pair in pairs:
        texts = {"prompt": pair.prompt, "response_a": pair.a, "response_b": pair.b}
        messages = {name: text for name, text in texts.items() if not isinstance(text, str)}
        plain = {name: "" if name in messages else text for name, text in texts.items()}
        rows.append(
            {
                "pair_id": pair.pair_id,
                **plain,
                "messages": json.dumps(messages) if messages else None,
                "gold": _SIDES.get(pair.gold or 0),
                "fields": json.dumps(dict(pair.fields), default=str) if pair.fields else None,
            }
        )
    write_table(out, rows, COLUMNS, inputs)


def read_pairs(path: Path) -> tuple[list[JudgedPair], str | None]:
    """The pairs of a file of :func:`write_pairs`, and the fingerprint of what they are made of.

    Raises:
        DataError: another file.
    """
    rows, inputs = read_table(path)
    if rows and not COLUMNS.keys() <= rows[0].keys():
        raise DataError(f"{path} is no pairs.parquet: it lacks {', '.join(sorted(COLUMNS.keys() - rows[0].keys()))}")
    found = []
    for row in rows:
        texts = {name: row[name] for name in ("prompt", "response_a", "response_b")}
        texts |= json.loads(row["messages"]) if row["messages"] else {}
        gold = {"a": 1, "b": -1}.get(row["gold"])
        fields = json.loads(row["fields"]) if row["fields"] else {}
        found.append(JudgedPair(row["pair_id"], *texts.values(), gold=gold, fields=fields))
    return found, inputs
