"""Which prompts and anchors a round has: drawn by a hash, so that no order and no kill changes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

from nemo_rpo.data.files.read import as_paths
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.judging.judged_pairs import JudgedPair, pairs_to_judge
from nemo_rpo.rounds.rounds_settings import AnchorSettings, PromptSettings
from nemo_rpo.sampling.collecting import Prompt, read_prompts

Item = TypeVar("Item")


class Prompts(NamedTuple):
    """Those that are trained on, in the order of their rounds, and those that never are."""

    trained: list[Prompt]
    held_out: list[Prompt]


def prompts_of(settings: PromptSettings, seed: int) -> Prompts:
    """All prompts of a loop.

    Raises:
        DataError: a row without a prompt. ConfigError: none is left to train on.
    """
    every = read_prompts(as_paths(settings.paths, setting="online.prompts.path", folders=True))
    ordered = _shuffled(every, seed, lambda prompt: prompt.key)
    if len(ordered) <= settings.held_out:
        raise ConfigError(
            f"online.prompts.held_out={settings.held_out} leaves none of {len(ordered):,} prompts to train on: lower it"
        )
    return Prompts(ordered[settings.held_out :], ordered[: settings.held_out])


def of_round(items: Sequence[Item], number: int, each: int | None) -> list[Item]:
    """The ``each`` items of round ``number`` (from 1): those behind the last round's, from the beginning at the end.

    >>> [of_round("abcde", number, 2) for number in (1, 2, 3)]
    [['a', 'b'], ['c', 'd'], ['e', 'a']]
    """
    if each is None or each >= len(items):
        return list(items)
    return [items[i % len(items)] for i in range((number - 1) * each, number * each)]


def anchors_of(settings: AnchorSettings, seed: int) -> list[JudgedPair]:
    """All anchors; their ids are never those of a round's pairs.

    Raises:
        DataError: a pair without a gold label, or none at all.
    """
    if settings.path is None:
        return []
    pairs, _ = pairs_to_judge(as_paths([Path(settings.path)], setting="online.anchors.path", folders=False))
    for pair in pairs:
        if pair.gold is None:
            raise DataError(f"{settings.path}: pair '{pair.pair_id}' has no gold label (gold: a or b): leave it out")
    if not pairs:
        raise DataError(f"{settings.path} has no pair")
    named = [replace(pair, pair_id=f"anchor:{pair.pair_id}") for pair in pairs]
    return _shuffled(named, seed, lambda pair: pair.pair_id)


def _shuffled(items: Sequence[Item], seed: int, key: Callable[[Item], str]) -> list[Item]:
    def place(item: Item) -> bytes:
        return blake2b(f"{seed}\0{key(item)}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(items, key=place)
