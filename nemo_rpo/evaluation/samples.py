"""Samples of a policy, drawn by the engine under the layout it was trained in. Called on every rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_rpo.data.files.read import read_records
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import Text
from nemo_rpo.errors import DataError
from nemo_rpo.evaluation.checkpoint import Target
from nemo_rpo.evaluation.measurements import engine
from nemo_rpo.evaluation.replicas import Replicas
from nemo_rpo.evaluation.speaker import Answer, Speaker, without_split_positions
from nemo_rpo.evaluation.speaking_settings import SpeakingSettings

_IDS = ("prompt_id", "id")


class Asked(NamedTuple):
    """One sample that is wanted: the prompt's key, the prompt, which of its samples from 0, and the seed."""

    prompt: str
    text: Text
    index: int
    seed: int


def read_asks(path: Path, samples: int, seed: int) -> list[Asked]:
    """Of rows with ``prompt``, a text or messages, and maybe ``prompt_id`` or ``id``: ``samples`` of each, seeded by
    ``seed``, the prompt's key and the index; or the one whose ``index`` and ``seed`` the row gives.

    Raises:
        DataError: a row without a prompt, or with an index and no seed.
    """
    found = []
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        text = fields.conversation("prompt")
        key = next((name for key in _IDS if (name := fields.identity(key, required=False))), None) or _key(text)
        if "index" in record.fields:
            found.append(Asked(key, text, fields.integer("index"), fields.integer("seed")))
        else:
            found += [Asked(key, text, index, seed_of(seed, key, index)) for index in range(samples)]
    return found


def seed_of(seed: int, prompt: str, index: int) -> int:
    """The seed of a sample, below 2⁶³; the same whatever else is sampled.

    >>> seed_of(0, "p", 0) == seed_of(0, "p", 0) != seed_of(0, "p", 1)
    True
    """
    named = f"{seed}\0{prompt}\0{index}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big") >> 1


def _key(text: Text) -> str:
    return hashlib.blake2b(json.dumps(text, sort_keys=True).encode(), digest_size=12).hexdigest()


def sample(target: Target, asks: Sequence[Asked], settings: SpeakingSettings) -> list[dict[str, Any]]:
    """A record for each of the ``asks``, in their order, the same on every rank: ``prompt``, ``index``, ``seed``,
    ``text``, ``tokens``, ``finish`` (``stop``: it ended by itself, ``length``: it was cut, ``failed``: the prompt
    leaves no room for it, which ``error`` says), ``logprob`` (log π of the text at temperature 1) and ``drawn_logprob``
    (under what it was drawn from).

    The same ask gives the same text, whatever else is asked and on however many ranks. Data-parallel ranks share the
    asks, unless they share experts. Collective over the world; besides the generation one gather of the answers over
    the data-parallel group.

    Raises:
        RPOError: weights or a tokenizer that cannot be read.
    """
    without_split_positions(target)
    with engine(target.cfg):
        speaker, replicas = Speaker.load(target, settings), Replicas.here()
        answers = replicas.together(_answered(speaker, {i: asks[i] for i in replicas.share(len(asks))}))
    return [_record(ask, answers[i], settings) for i, ask in enumerate(asks)]


def _answered(speaker: Speaker, asks: dict[int, Asked]) -> dict[int, Answer | None]:
    """None where there is no room."""
    found: dict[int, Answer | None] = dict.fromkeys(asks)
    by_end: dict[int, list[tuple[int, list[int]]]] = {}
    for i, ask in asks.items():
        ids = speaker.ids(ask.text)
        if speaker.has_room(ids):
            by_end.setdefault(speaker.end_of(ask.text), []).append((i, ids))
    for end, group in sorted(by_end.items()):
        places, prompts = zip(*group, strict=True)
        for k, answer in speaker.answers(prompts, end, [asks[i].seed for i in places]):
            found[places[k]] = answer
    return found


def _record(ask: Asked, answer: Answer | None, settings: SpeakingSettings) -> dict[str, Any]:
    asked = {"prompt": ask.prompt, "index": ask.index, "seed": ask.seed}
    if answer is None:
        error = f"the prompt leaves no {settings.max_new_tokens} tokens of the model's context for an answer"
        said = {"text": "", "tokens": None, "finish": "failed", "logprob": None, "drawn_logprob": None, "error": error}
        return asked | said
    return asked | {
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": "stop" if answer.ended else "length",
        "logprob": answer.logprob,
        "drawn_logprob": answer.drawn_logprob,
        "error": None,
    }
