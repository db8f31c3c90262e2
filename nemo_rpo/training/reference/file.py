"""The file of reference log-probs: one row a pair, found again by what the pair holds.

A Parquet file a split, with the columns

    pair_id                   string
    content_hash              16 bytes over the ids of prompt, chosen and rejected
    ref_chosen_logps          float32, summed over the response
    ref_rejected_logps        float32
    ref_chosen_token_logps    list<float32>, a token each; only where they were asked for
    ref_rejected_token_logps  list<float32>

and metadata ``nemo_rpo.*`` that names the weights, the precision, the tokenizer, its chat template and the truncation
it was made with. The content hash stands for all of the last three; they are there to name what changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.data.cache.arrow import content_hashes, lists, pair_ids, pyarrow
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ReferencePolicyError, first_line

_PREFIX = b"nemo_rpo."


@dataclass(frozen=True)
class Logprobs:
    """Of every pair of one data set, in its order: ``chosen`` and ``rejected``, float32 [n], summed; ``tokens``, where
    they were asked for, float32 [t], end to end those of each pair's scored tokens, chosen before rejected.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    tokens: np.ndarray | None = None


@dataclass(frozen=True)
class MadeWith:
    """What the log-probs of a file depend on beside the pairs.

    Attributes:
        model: has to be the same wherever the file is read: weights and precision.
        text: decides the token ids: tokenizer, chat template, truncation. Each row has a hash of its ids, and rows
            with equal ids are read even where these settings differ.
    """

    model: Mapping[str, str]
    text: Mapping[str, str]


def write(path: Path, logprobs: Logprobs, cache: PreferenceCache, made_with: MadeWith) -> None:
    """Writes the file, whole or not at all. Local; call it on one rank.

    Raises:
        ReferencePolicyError: it cannot be written.
    """
    pa, pq = pyarrow()
    columns = {
        "pair_id": pair_ids(cache),
        "content_hash": content_hashes(cache),
        "ref_chosen_logps": logprobs.chosen,
        "ref_rejected_logps": logprobs.rejected,
    }
    if logprobs.tokens is not None:
        ends = cache.scored_lengths().reshape(-1).cumsum()
        for side, name in enumerate(("ref_chosen_token_logps", "ref_rejected_token_logps")):
            columns[name] = lists(logprobs.tokens, ends, slice(side, None, 2))
    entries = {**made_with.model, **made_with.text}
    metadata = {_PREFIX + name.encode(): value.encode() for name, value in entries.items()}
    table, advice = pa.table(columns).replace_schema_metadata(metadata), "set model.rpo.reference_cache"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ReferencePolicyError(f"{path.parent} cannot be made ({exc.strerror or exc}); {advice}") from exc
    with whole_file(path, ReferencePolicyError, advice) as writing:
        pq.write_table(table, writing)


def read(path: Path, cache: PreferenceCache, made_with: MadeWith) -> Logprobs:
    """The summed log-probs of every pair of ``cache``, whatever else is in the file and in whichever order.

    Raises:
        ReferencePolicyError: a damaged file; other weights or another precision; a pair of the data that is not in it.
            The message names what differs.
    """
    pa, pq = pyarrow()
    try:
        table = pq.read_table(path, columns=["pair_id", "content_hash", "ref_chosen_logps", "ref_rejected_logps"])
    except (OSError, pa.ArrowException) as exc:
        raise ReferencePolicyError(
            f"{path}: cannot be read ({first_line(exc)}); delete it to compute the reference again"
        ) from exc
    _check_columns(path, table)
    saved = {
        name.removeprefix(_PREFIX).decode(errors="replace"): value.decode(errors="replace")
        for name, value in (table.schema.metadata or {}).items()
    }
    if differing := _differences(saved, made_with.model):
        raise ReferencePolicyError(f"{path}: {differing}; delete it or set model.rpo.reference_cache")
    known = _hashes(table)
    wanted = np.ascontiguousarray(cache.content_hash).view("V16").reshape(-1)
    order = np.argsort(known, kind="stable")
    rows = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    missing = np.flatnonzero(known[rows] != wanted)
    if missing.size:
        first = int(missing[0])
        raise ReferencePolicyError(
            f"{path}: has no log-probs for pair '{cache.pair_id(first)}' ({cache.where(first)}; {missing.size} such "
            f"pairs): {_why_missing(saved, made_with, cache.pair_id(first), table)}; delete it to compute them again"
        )
    return Logprobs(table["ref_chosen_logps"].to_numpy()[rows], table["ref_rejected_logps"].to_numpy()[rows])


def _hashes(table: Any) -> np.ndarray:
    """The content hashes, V16 [n]."""
    chunks = table["content_hash"].chunks
    parts = (np.frombuffer(chunk.buffers()[1], "V16")[chunk.offset :][: len(chunk)] for chunk in chunks)
    return np.concatenate(list(parts))


def _check_columns(path: Path, table: Any) -> None:
    """Raises :class:`ReferencePolicyError` unless the columns are those that :func:`write` writes."""
    pa, _ = pyarrow()
    wanted = {"pair_id": pa.string(), "content_hash": pa.binary(16)}
    wanted |= dict.fromkeys(("ref_chosen_logps", "ref_rejected_logps"), pa.float32())
    for name, kind in wanted.items():
        if table.schema.names.count(name) != 1 or table.schema.field(name).type != kind or table[name].null_count:
            raise ReferencePolicyError(
                f"{path}: column {name} is not the {kind} without nulls that a file of reference log-probs has; delete "
                "it to compute the reference again"
            )
    if not table.num_rows:
        raise ReferencePolicyError(f"{path}: has no rows; delete it to compute the reference again")


def _differences(saved: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """A phrase of what is not as wanted; empty if all is."""
    phrases = (
        f"computed with {name} {saved.get(name)}, this run has {value}"
        for name, value in wanted.items()
        if saved.get(name) != value
    )
    return "; ".join(phrases)


def _why_missing(saved: Mapping[str, str], made_with: MadeWith, pair_id: str, table: Any) -> str:
    if differing := _differences(saved, made_with.text):
        return differing
    if pair_id in table["pair_id"].to_pylist():
        return "its text has changed, or which response is chosen"
    return "it was not among the pairs then"
