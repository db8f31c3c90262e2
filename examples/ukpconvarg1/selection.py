"""Which pairs are trained on, which are held out, and whose votes are turned round.

Every random choice orders its candidates by a keyed hash of their name: it depends on the seed and the names alone, not
on the order of the files, and a smaller selection is contained in a larger one.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from ukp import Pair

from nemo_rpo.errors import ConfigError


def shuffled(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """``names`` without repeats, in the order that ``seed`` gives them for ``purpose``."""
    key = f"{purpose} {seed}".encode()
    return sorted(set(names), key=lambda name: hashlib.blake2b(name.encode(), key=key).digest())


def split_by_title(pairs: list[Pair], held_out: int, seed: int) -> tuple[list[Pair], list[Pair], list[str]]:
    """(training pairs, held-out pairs, held-out titles). Both stances of a debate are on the same side.

    Raises:
        ConfigError: nothing would be left on one of the two sides.
    """
    titles = shuffled((pair.title for pair in pairs), seed, "held-out titles")
    if not 0 < held_out < len(titles):
        raise ConfigError(
            f"--held-out must lie between 1 and {len(titles) - 1} of the {len(titles)} titles, got {held_out}"
        )
    chosen = set(titles[:held_out])
    return [p for p in pairs if p.title not in chosen], [p for p in pairs if p.title in chosen], sorted(chosen)


def keep(pairs: list[Pair], left_out: Counter, reason: str, condition: Callable[[Pair], bool]) -> list[Pair]:
    """The pairs that meet ``condition``; the others are counted in ``left_out`` under ``reason``."""
    kept = [pair for pair in pairs if condition(pair)]
    left_out[reason] += len(pairs) - len(kept)
    return kept


def drop_rare_workers(pairs: list[Pair], min_votes: int) -> list[Pair]:
    """The pairs without the votes of workers who gave fewer than ``min_votes`` signed votes on them."""
    counts = Counter(vote.annotator for pair in pairs for vote in pair.signed_votes)
    return [replace(p, votes=tuple(v for v in p.votes if counts[v.annotator] >= min_votes)) for p in pairs]


def limit(pairs: list[Pair], seed: int, purpose: str, amount: int | None, size: Callable[[Pair], int]) -> list[Pair]:
    """Randomly chosen pairs, in their old order, until their sizes add up to ``amount``; all of them if it is None."""
    if amount is None:
        return pairs
    by_id = {pair.pair_id: pair for pair in pairs}
    chosen, total = set(), 0
    for name in shuffled(by_id, seed, purpose):
        if total >= amount:
            break
        chosen.add(name)
        total += size(by_id[name])
    return [pair for pair in pairs if pair.pair_id in chosen]


def invert_workers(pairs: list[Pair], share: float, seed: int) -> tuple[list[Pair], list[str]]:
    """Turn every vote of random workers who together hold ``share`` of the signed votes; returns those workers as well.

    A worker who would overshoot the share is passed over, so that it is met to within the last few votes although some
    workers gave thousands.
    """
    counts = Counter(vote.annotator for pair in pairs for vote in pair.signed_votes)
    room = round(share * counts.total())
    inverted = set()
    for worker in shuffled(counts, seed, "inverted workers"):
        if counts[worker] <= room:
            inverted.add(worker)
            room -= counts[worker]
    turned = [replace(p, votes=tuple(v.inverted() if v.annotator in inverted else v for v in p.votes)) for p in pairs]
    return turned, sorted(inverted)


def invert_votes(pairs: list[Pair], share: float, seed: int) -> list[Pair]:
    """Turn ``share`` of the signed votes, whoever gave them."""
    names = [f"{p.pair_id} {v.annotator}" for p in pairs for v in p.signed_votes]
    chosen = set(shuffled(names, seed, "inverted votes")[: round(share * len(names))])
    return [
        replace(p, votes=tuple(v.inverted() if f"{p.pair_id} {v.annotator}" in chosen else v for v in p.votes))
        for p in pairs
    ]
