"""Writes the files of a :class:`nemo_rpo.data.cache.store.PreferenceCache` into an empty folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import NamedTuple

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL, AnnotatorTable
from nemo_rpo.data.cache.encoder import encode
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import OF_VOTES
from nemo_rpo.data.columns import TIE
from nemo_rpo.data.files.read import count_rows
from nemo_rpo.data.formats import read_parsed, unread_fields
from nemo_rpo.data.pairs import PairLedger, PairTable
from nemo_rpo.data.rendering import NOT_RENDERED, OK, OVER_LONG, PROBLEMS, RawText
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.vote_table import says_both
from nemo_rpo.digests import digests_of, sealed, sync
from nemo_rpo.errors import DataError

Progress = Callable[[int, int], None]
NO_SIGNED_VOTE, EQUAL_RANKS = "no signed vote", "equal ranks"


class _Texts(NamedTuple):
    """What tokenising left to know about each text: shapes as in :class:`nemo_rpo.data.cache.encoder.EncodedChunk`."""

    start: np.ndarray  # int64 [T], of its prompt in tokens.bin
    lengths: np.ndarray
    problem: np.ndarray
    runs: np.ndarray
    run_start: np.ndarray  # int64 [T, k], where those of each response begin in runs
    run_counts: np.ndarray
    content_hash: np.ndarray
    hash_start: np.ndarray  # int64 [T], where its hashes begin
    truncated: int
    tokens: int
    max_token_id: int
    reasons: dict[int, str]  # why a text cannot be rendered
    notes: Counter[str]


def write_cache(spec: CacheSpec, folder: Path, num_workers: int, progress: Progress | None) -> None:
    """Read, tokenise, group and write; one pass over the data, in memory only what is known about each pair.

    Raises:
        DataError: bad rows, and under ``invalid_pairs=error`` the first pair that cannot be trained on.
    """
    tokenizer = PreferenceTokenizer.load(spec.tokenizer)
    ledger = PairLedger(spec.group_votes, spec.keep_ties)
    total = sum(count_rows(path) for path in spec.paths)
    notes: Counter[str] = Counter()
    texts = _new_texts(spec, ledger, notes)
    with (folder / "tokens.bin").open("wb") as file:
        encoded = _collect(
            encode(texts, tokenizer, spec.tokenizer, spec.seq_length, num_workers),
            file.write,
            lambda: progress(ledger.rows, total) if progress else None,
        )
    table = ledger.close()
    if spec.keep_ties:
        table.columns[TIE] = table.tie.astype(np.float32)
    if both := _labelled_both_ways(table):
        notes["pairs that one annotator labelled both ways: nemo-rpo validate names them"] = both
    keep, dropped = _judge(spec, table, encoded)
    _write_pairs(folder, table, encoded, keep)
    report = {
        "rows": table.rows,
        "pairs": int(keep.sum()),
        "rankings": int((keep & (np.diff(table.text, prepend=-1) != 0) & (table.size > 2)).sum()),
        "votes": table.votes,
        "ties": table.ties,
        "annotators": len(table.annotators),
        "votes_without_annotator": table.without_annotator,
        "truncated_prompts": encoded.truncated,
        "dropped": dropped,
        "notes": {note: count for of in (notes, encoded.notes) for note, count in sorted(of.items())},
    }
    meta = {
        "report": report,
        "files": table.files,
        "columns": list(table.columns),
        "topics": table.topics,
        "families": table.details.families,
        "tokens": encoded.tokens,
        "max_token_id": encoded.max_token_id,
        "max_votes": max(int(np.diff(table.vote_start)[keep].max()), 1),
        # Some tokenizers pad with an id that the model has no embedding for; padding may be any id that it has.
        "pad_id": min(tokenizer.pad_id, encoded.max_token_id),
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "vocab_size": tokenizer.vocab_size,
    }
    # The folder is renamed into place: its contents must not arrive on the disk after its name.
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        sync(folder / name)
    (folder / "meta.json").write_text(sealed({**meta, "digests": digests_of(folder, names)}), encoding="utf-8")
    sync(folder / "meta.json")
    sync(folder)


def _labelled_both_ways(table: PairTable) -> int:
    pair = np.repeat(np.arange(len(table.pair_id)), np.diff(table.vote_start))
    shown = table.details.columns.get("shown_first", np.zeros(len(pair), dtype=np.int8))
    votes = says_both(pair, table.annotator, table.sign, shown)
    named = np.array([name != VIRTUAL for name in table.annotators.ids], dtype=bool)
    return len(np.unique(pair[votes & named[table.annotator]]))


def _new_texts(spec: CacheSpec, ledger: PairLedger, notes: Counter[str]) -> Iterator[RawText]:
    """The texts that no earlier row showed; ``notes`` count what is said of the rows."""
    last = None
    for parsed in read_parsed(list(spec.paths), spec.keys):
        row = parsed.row
        if parsed.record is not last:  # which may say several rows
            last = parsed.record
            notes.update(f"field '{name}' is not read" for name in unread_fields(last, spec.keys, parsed.layout))
        if row.prompt_repeated:
            notes["responses begin with the prompt: it was taken off them"] += 1
        if ledger.add(row) is not None:
            yield RawText(row.where, row.prompt, row.responses, row.given)


def _collect(chunks: Iterator, write: Callable[[bytes], object], after_chunk: Callable[[], None]) -> _Texts:
    lengths, problem, runs, run_counts, content_hash, hash_counts = [], [], [], [], [], []
    truncated, max_token_id, texts, reasons, notes = 0, -1, 0, {}, Counter()
    for chunk in chunks:
        reasons |= {texts + i: reason for i, reason in chunk.reasons.items()}
        notes.update(chunk.notes)
        texts += len(chunk.problem)
        write(chunk.tokens.tobytes())
        lengths.append(chunk.lengths)
        problem.append(chunk.problem)
        runs.append(chunk.runs)
        run_counts.append(chunk.run_counts)
        content_hash.append(chunk.content_hash)
        hash_counts.append(chunk.hash_counts)
        truncated += chunk.truncated
        max_token_id = max(max_token_id, int(chunk.tokens.max(initial=-1)))
        after_chunk()
    all_lengths, all_problem = _concatenated(lengths), np.concatenate(problem)
    end = np.cumsum(np.where(all_problem == OK, all_lengths.sum(1, dtype=np.int64), 0))
    start = np.concatenate([[0], end[:-1]])
    counts, hashes = _concatenated(run_counts), np.concatenate(hash_counts)
    return _Texts(
        start=start,
        lengths=all_lengths,
        problem=all_problem,
        runs=np.concatenate(runs),
        run_start=counts.cumsum().reshape(counts.shape) - counts,
        run_counts=counts,
        content_hash=np.concatenate(content_hash),
        hash_start=hashes.cumsum() - hashes,
        truncated=truncated,
        tokens=int(end[-1]),
        max_token_id=max_token_id,
        reasons=reasons,
        notes=notes,
    )


def _concatenated(chunks: list[np.ndarray]) -> np.ndarray:
    """Chunks with a column for each response, as one array as wide as the widest chunk, filled with 0."""
    width = max(chunk.shape[1] for chunk in chunks)
    return np.concatenate([np.pad(chunk, ((0, 0), (0, width - chunk.shape[1]))) for chunk in chunks])


def _judge(spec: CacheSpec, table: PairTable, texts: _Texts) -> tuple[np.ndarray, dict[str, int]]:
    """Which pairs stay, bool [n], and how many are left out by reason, a ranking counting as one.

    Ties are legitimate data without evidence: they are left out under either policy, unless ``keep_ties`` says that
    there is a use for them. So is a ranking in which two responses are equal: it is no order of them.
    """
    voted, ranked = np.diff(table.vote_start) > 0, table.size > 2
    if spec.keep_ties:
        voted |= table.tie & ~ranked
    problem, share = texts.problem[table.text], table.share

    def counted(pairs: np.ndarray | EllipsisType) -> int:
        return round(share[pairs].sum())

    invalid = voted & (problem != OK)
    if invalid.any() and spec.invalid_pairs == "error":
        first = int(np.argmax(invalid))
        raise DataError(
            f"{table.where(first)}: {_explain(spec, texts, table.text[first])}; "
            f"set model.data.invalid_pairs=drop to leave such pairs out ({counted(invalid)} of {counted(...)} pairs)"
        )
    dropped = {NO_SIGNED_VOTE: counted(~voted & ~ranked), EQUAL_RANKS: counted(~voted & ranked)}
    dropped |= {name: counted(invalid & (problem == code)) for code, name in enumerate(PROBLEMS) if code != OK}
    dropped = {reason: count for reason, count in dropped.items() if count}
    keep = voted & ~invalid
    if not keep.any():
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        first = f"; the first: {next(iter(texts.reasons.values()))}" if texts.reasons else ""
        raise DataError(f"{spec.paths[0]}: no pair of {counted(...)} can be trained on ({reasons}{first})")
    return keep, dropped


def _explain(spec: CacheSpec, texts: _Texts, text: int) -> str:
    problem = int(texts.problem[text])
    if problem == NOT_RENDERED:
        return texts.reasons[text]
    if problem != OVER_LONG:
        return PROBLEMS[problem]
    longest = int(texts.lengths[text, 1:].max())
    return (
        f"{PROBLEMS[problem]} ({longest} tokens; seq_length {spec.seq_length} leaves {spec.seq_length - 1} beside one "
        "token of prompt, and completions are never cut)"
    )


def _write_pairs(folder: Path, table: PairTable, texts: _Texts, keep: np.ndarray) -> None:
    text, sides, size = table.text[keep], table.sides[keep].astype(np.int64), table.size[keep].astype(np.int64)
    parts = np.pad(1 + sides, ((0, 0), (1, 0)))  # prompt, chosen, rejected among prompt and responses
    start = np.cumsum(texts.lengths, axis=1, dtype=np.int64) - texts.lengths + texts.start[:, None]
    votes = np.diff(table.vote_start)
    kept_votes = np.repeat(keep, votes)
    annotator = table.annotator[kept_votes]
    names = [table.pair_id[i].encode("utf-8") for i in np.flatnonzero(keep)]
    arrays = {
        "offsets": np.take_along_axis(start[text], parts, axis=1),
        "lengths": np.take_along_axis(texts.lengths[text], parts, axis=1),
        "vote_start": np.concatenate([[0], np.cumsum(votes[keep])]),
        "annotator": annotator.astype(np.int32),
        "sign": table.sign[kept_votes],
        "gold": table.gold[keep],
        "columns": np.stack([values[keep] for values in table.columns.values()])
        if table.columns
        else np.empty((0, int(keep.sum())), dtype=np.float32),
        "content_hash": texts.content_hash[texts.hash_start[text] + _orientation(sides, size)],
        "source": table.source[keep],
        "pair_id_start": np.concatenate([[0], np.cumsum([len(name) for name in names])]),
        **_known_of_votes(table, kept_votes, keep),
        **_runs(texts, text, sides),
        **_rankings(text, size),
    }
    for name, values in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, values)
    (folder / "pair_id.bin").write_bytes(b"".join(names))
    counts_for = np.repeat(table.share, votes)[kept_votes]
    labels = np.bincount(annotator, weights=counts_for, minlength=len(table.annotators)).round()
    AnnotatorTable(replace(known, labels=int(labels[k])) for k, known in enumerate(table.annotators.annotators)).save(
        folder / "annotators.jsonl"
    )


def _known_of_votes(table: PairTable, votes: np.ndarray, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """The files of what is known beside who said what, of the kept ``votes`` and ``pairs``; none that no row has."""
    details = table.details.take(votes)
    known = {
        f"vote_{name}": details.columns[name].astype(dtype)
        for name, dtype in OF_VOTES.items()
        if name in details.columns
    }
    if "shown_first" in details.columns:
        known["chosen_first"] = table.chosen_first[pairs]
    if table.topics:
        known["topic"] = table.topic[pairs].astype(np.int32)
    if details.families:
        place = {name: k for k, name in enumerate(details.families)} | {None: -1}
        of = table.details.family_of(table.annotator, len(table.annotators))
        known["family"] = np.array([place[name] for name in of], dtype=np.int32)
    return known


def _orientation(sides: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where (chosen, rejected) stands among :func:`~nemo_rpo.data.cache.encoder.orientations` of the text, [n]."""
    chosen, rejected = sides.T
    in_ranking = chosen * (2 * size - chosen - 1) // 2 + rejected - chosen - 1
    return np.where(size == 2, chosen, in_ranking)


def _rankings(text: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """The file of rankings; none if all data are pairs."""
    if size.max() == 2:
        return {}
    first = np.flatnonzero((np.diff(text, prepend=-1) != 0) | (size == 2))  # labels apart are pairs of one text
    return {"ranking_start": np.append(first, len(text)).astype(np.int64)}


def _runs(texts: _Texts, text: np.ndarray, sides: np.ndarray) -> dict[str, np.ndarray]:
    """The files of runs; none if every response is a single turn."""
    if texts.run_counts[text].max() == 1:
        return {}
    start, count = (np.take_along_axis(values[text], sides, axis=1) for values in (texts.run_start, texts.run_counts))
    return {"runs": texts.runs, "run_bounds": np.stack([start, start + count], axis=2)}
