"""Texts to tokens, in this process or in several, a chunk at a time and in order."""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, combinations, islice

import numpy as np

from nemo_rpo.data.rendering import OK, RawText, render
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.data.truncation import truncate_prompt
from nemo_rpo.errors import DataError

CHUNK = 256  # texts a task: milliseconds of work against microseconds of hand-over
# Below this many texts a pool costs more than it saves: every worker imports the tokenizer library for seconds.
SPAWN_FROM = 4096
_NOTHING = np.empty(0, dtype=np.int32)  # the absent side of a completion judged alone


@dataclass(frozen=True)
class EncodedChunk:
    """Tokens of m texts of up to k responses; a text with a problem has none.

    Attributes:
        tokens: int32, the prompt and the responses of every text, end to end.
        lengths: int32 [m, 1+k] of these, 0 where a text has fewer; of a text with a problem the lengths it would have
            had.
        problem: int8 [m], index into :data:`nemo_rpo.data.rendering.PROBLEMS`.
        runs: int32, those of every response (:mod:`nemo_rpo.data.turns`), end to end.
        run_counts: int64 [m, k], runs of the responses; of a text with a problem 0.
        content_hash: uint8 [h, 16], BLAKE2b of the ids of prompt, chosen and rejected response, of every text one for
            each of :func:`orientations`; of a text with a problem 0.
        hash_counts: int64 [m], of each text.
        truncated: prompts that were cut.
        reasons: why a text cannot be rendered, by its place in the chunk.
        notes: how many texts each note of the tokenizer is about.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    problem: np.ndarray
    runs: np.ndarray
    run_counts: np.ndarray
    content_hash: np.ndarray
    hash_counts: np.ndarray
    truncated: int
    reasons: dict[int, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)


def orientations(responses: int) -> list[tuple[int, int]]:
    """Which responses of a text may be chosen and rejected of a pair: of two either, of a ranking better and worse.

    Of one judged alone, the other side is absent.

    >>> orientations(2), orientations(3)
    ([(0, 1), (1, 0)], [(0, 1), (0, 2), (1, 2)])
    """
    return [(0, 1), (1, 0)] if responses <= 2 else list(combinations(range(responses), 2))


def encode(
    texts: Iterable[RawText], tokenizer: PreferenceTokenizer, spec: TokenizerSpec, seq_length: int, num_workers: int
) -> Iterator[EncodedChunk]:
    """Chunks of tokens in the order of ``texts``, which is read no further ahead than the workers need.

    Args:
        num_workers: processes to tokenise in; with fewer than 2, or a few thousand texts, this one does it alone.
    """
    texts = iter(texts)
    head = list(islice(texts, SPAWN_FROM)) if num_workers > 1 else []
    if len(head) < SPAWN_FROM:
        for chunk in _chunks(chain(head, texts)):
            yield encode_chunk(chunk, tokenizer, seq_length)
        return
    # spawn: a fork after torch has started its threads can deadlock, and would inherit the builder's file lock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(spec, seq_length))
    try:
        pending: deque = deque()
        for chunk in _chunks(chain(head, texts)):
            pending.append(pool.submit(_work, chunk))
            if len(pending) > 4 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as exc:
        raise DataError(
            "a tokenising process died: out of memory, or the main script lacks its `if __name__ == '__main__'` guard; "
            f"lower model.data.num_workers (now {num_workers})"
        ) from exc
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encode_chunk(texts: list[RawText], tokenizer: PreferenceTokenizer, seq_length: int) -> EncodedChunk:
    """Tokenise, truncate and judge each text.

    Raises:
        NoTemplateError: a row of messages, named, where the tokenizer has no chat template.
    """
    parts: list[np.ndarray] = []
    runs: list[np.ndarray] = []
    most = max(2, *(len(text.responses) for text in texts))
    run_counts = np.zeros((len(texts), most), dtype=np.int64)
    lengths = np.zeros((len(texts), 1 + most), dtype=np.int32)
    problem = np.zeros(len(texts), dtype=np.int8)
    hashes: list[np.ndarray] = []
    hash_counts = np.array([len(orientations(len(text.responses))) for text in texts], dtype=np.int64)
    truncated, reasons, notes = 0, {}, Counter()
    for i, rendered in enumerate(render(texts, tokenizer, seq_length)):
        prompt, responses, runs_of, problem[i], reason, said = rendered
        lengths[i, : 1 + len(responses)] = [len(ids) for ids in (prompt, *responses)]
        notes.update(said)
        if reason:
            reasons[i] = reason
        if problem[i] != OK:
            hashes += [np.zeros(16, dtype=np.uint8)] * int(hash_counts[i])
            continue
        kept = truncate_prompt(prompt, max(map(len, responses)), seq_length, tokenizer.bos_id)
        truncated += len(kept) < len(prompt)
        parts += [kept, *responses]
        runs += runs_of
        run_counts[i, : len(responses)] = [len(of) for of in runs_of]
        lengths[i, 0] = len(kept)
        sides, runs_of_sides = ((*of, *[_NOTHING] * (2 - len(of))) for of in (responses, runs_of))
        for chosen, rejected in orientations(len(responses)):
            hashes.append(_hash(kept, *(of[side] for of in (sides, runs_of_sides) for side in (chosen, rejected))))
    tokens = np.concatenate(parts).astype(np.int32) if parts else np.empty(0, dtype=np.int32)
    flat_runs = np.concatenate(runs) if runs else np.empty(0, dtype=np.int32)
    return EncodedChunk(
        tokens, lengths, problem, flat_runs, run_counts, np.stack(hashes), hash_counts, truncated, reasons, notes
    )


def _hash(prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, *runs: np.ndarray) -> np.ndarray:
    digest = hashlib.blake2b(np.array([len(prompt), len(chosen)], dtype="<i8").tobytes(), digest_size=16)
    for ids in (prompt, chosen, rejected):
        digest.update(ids.astype("<i4").tobytes())
    if max(map(len, runs)) > 1:  # which tokens are scored; of one turn all are
        for of in runs:
            digest.update(np.array([len(of), *of], dtype="<i8").tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _chunks(texts: Iterator[RawText]) -> Iterator[list[RawText]]:
    while chunk := list(islice(texts, CHUNK)):
        yield chunk


_worker: tuple[PreferenceTokenizer, int]


def _start(spec: TokenizerSpec, seq_length: int) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker = PreferenceTokenizer.load(spec), seq_length


def _end_with_parent() -> None:
    # A killed builder cannot stop its pool, and a worker would wait for its next task for ever.
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(texts: list[RawText]) -> EncodedChunk:
    return encode_chunk(texts, *_worker)
