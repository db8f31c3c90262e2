"""Tokenised pairs on disk, memory-mapped: a million of them cost a process no memory until it looks at one.

A ranking is all pairs of its responses, one after the other (:mod:`nemo_rpo.data.rankings`); they share its tokens. A
pair by itself is a ranking of two.

Shapes: n pairs, r rankings, v votes, K annotators. A cache folder holds

    tokens.bin        int32, prompt and responses of every distinct text, end to end
    offsets.npy       int64 [n, 3], where prompt, chosen and rejected begin in it
    lengths.npy       int32 [n, 3]
    vote_start.npy    int64 [n+1]      annotator.npy  int32 [v]      sign.npy  int8 [v], ±1
    gold.npy          int8 [n]         columns.npy    float32 [c, n]
    content_hash.npy  uint8 [n, 16]    source.npy     int64 [n, 2], file and row
    pair_id.bin       UTF-8, end to end               pair_id_start.npy  int64 [n+1]
    runs.npy          int32, of all responses         run_bounds.npy     int64 [n, 2, 2], of chosen and rejected in it
                      (both only where a response has several turns)
    ranking_start.npy int64 [r+1], where the pairs of each ranking begin (only where one has more than two responses)
    vote_shown_first.npy  int8 [v]      chosen_first.npy  int8 [n]
    vote_strength.npy, vote_confidence.npy, vote_seconds.npy  float32 [v]      vote_time.npy  float64 [v]
    topic.npy         int32 [n]        family.npy  int32 [K]   (each only where a row has it)
    annotators.jsonl  meta.json
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.data.rankings import pairs_of, responses_of
from nemo_rpo.data.turns import assistant_tokens
from nemo_rpo.digests import damage, unsealed
from nemo_rpo.errors import DataError, first_line, printable

# What files raise that are readable and do not fit together.
_MISFITS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


# What is known of a vote beside who said what, and how it is stored.
OF_VOTES = {
    "shown_first": np.int8,
    "strength": np.float32,
    "confidence": np.float32,
    "seconds": np.float32,
    "time": np.float64,
}


class TokenizedPair(NamedTuple):
    """One pair as the model sees it.

    Attributes:
        prompt_ids, chosen_ids, rejected_ids: int32 [p], [c], [r]; prompt + response fits into seq_length.
        annotator: int64 [v] of the pair's votes.
        sign: int8 [v], +1 for chosen, −1 for rejected; at least one vote, but for a tie, which has none.
        pair_id: the data's id, or a hash of the pair's content.
        content_hash: 16 bytes over the three id sequences, in this orientation.
        columns: side columns by name, NaN where unknown.
        gold: +1 chosen, −1 rejected, ``None`` unknown.
        chosen_runs, rejected_runs: which tokens are turns of the assistant (:mod:`nemo_rpo.data.turns`), int32 [r];
            ``None`` where no response of the data has several.
    """

    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    pair_id: str
    content_hash: bytes
    columns: dict[str, float]
    gold: int | None
    chosen_runs: np.ndarray | None = None
    rejected_runs: np.ndarray | None = None


_COUNTS = "rows pairs rankings votes ties annotators votes_without_annotator truncated_prompts".split()
_REPORT = {**dict.fromkeys(_COUNTS, int), "dropped": dict, "notes": dict}


class PreferenceCache:
    """Random access to the pairs of a finished cache folder.

    Attributes:
        folder: where it lies.
        annotators: the table that ``annotator`` indexes.
        lengths: int32 [n, 3], tokens of prompt, chosen and rejected.
        gold: int8 [n], +1 chosen, −1 rejected, 0 unknown.
        columns: float32 [n] by name.
        content_hash: uint8 [n, 16].
        report: counts of the build: rows, pairs, votes, ties, what was dropped and why.
        pad_id, bos_id, eos_id, vocab_size: the tokenizer's; ``max_token_id`` is the largest id in the data.
        max_votes: votes of the pair that has most.
        max_responses: responses of the ranking that has most; 2 where all are pairs.
        ranking_lengths: int32 [r, 1 + max_responses], tokens of the prompt and the responses of each, 0 where it has
            fewer; ``lengths`` where all are pairs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._digests: dict[str, str] = {}
        try:
            self._open()
        except Exception as exc:  # a flipped bit in the header of an array fails in any way
            found = damage(self.folder, self._digests)
            if found is None and not isinstance(exc, _MISFITS):
                raise
            raise DataError(_damaged(self.folder, found or first_line(exc))) from exc
        self.use_annotators(self._own_annotators)

    def _open(self) -> None:
        meta = unsealed((self.folder / "meta.json").read_bytes())
        self._digests = meta["digests"]
        self._tokens = np.memmap(self.folder / "tokens.bin", dtype=np.int32, mode="r", shape=(meta["tokens"],))
        self.report: dict[str, Any] = meta["report"]
        self.files: list[str] = meta["files"]
        self.pad_id: int = meta["pad_id"]
        self.bos_id: int | None = meta["bos_id"]
        self.eos_id: int | None = meta["eos_id"]
        self.vocab_size: int = meta["vocab_size"]
        self.max_token_id: int = meta["max_token_id"]
        self.max_votes: int = meta["max_votes"]
        self.lengths = self._array("lengths")
        self.gold = self._array("gold")
        self.content_hash = self._array("content_hash")
        self.columns = dict(zip(meta["columns"], self._array("columns"), strict=True))
        self._offsets, self._vote_start = self._array("offsets"), self._array("vote_start")
        self._annotator, self._sign = self._array("annotator"), self._array("sign")
        self._pair_id_start = self._array("pair_id_start")
        self._pair_ids = np.memmap(self.folder / "pair_id.bin", dtype=np.uint8, mode="r")
        self._source = self._array("source")
        several_turns = (self.folder / "runs.npy").exists()
        self._runs = self._array("runs") if several_turns else None
        self._run_bounds = self._array("run_bounds") if several_turns else None
        self._ranking_start = self._array("ranking_start") if (self.folder / "ranking_start.npy").exists() else None
        self.topics: list[str] = meta["topics"]
        self.families: list[str] = meta["families"]
        names = (*(f"vote_{name}" for name in OF_VOTES), "chosen_first", "topic", "family")
        self._known = {name: self._array(name) for name in names if (self.folder / f"{name}.npy").exists()}
        self.max_responses, self.ranking_lengths = 2, self.lengths
        if self._ranking_start is not None:
            self.max_responses = responses_of(int(np.diff(self._ranking_start).max()))
            self.ranking_lengths = self._lengths_of_rankings()
        self._own_annotators = AnnotatorTable.load(self.folder / "annotators.jsonl")
        if len(self._own_annotators) != self.report["annotators"]:
            raise ValueError(f"annotators.jsonl has {len(self._own_annotators)} of {self.report['annotators']} lines")
        self._check(meta["tokens"])

    def _check(self, tokens: int) -> None:
        """Raises :class:`ValueError` where an array points outside of another; reads no tokens."""
        if not all(isinstance(self.report[name], kind) for name, kind in _REPORT.items()):
            raise ValueError("the report in meta.json is of another type")
        n, votes, annotators = len(self), len(self._annotator), len(self._own_annotators)
        shapes = {
            "offsets": (self._offsets, (n, 3)),
            "lengths": (self.lengths, (n, 3)),
            "gold": (self.gold, (n,)),
            "content_hash": (self.content_hash, (n, 16)),
            "source": (self._source, (n, 2)),
            "sign": (self._sign, (votes,)),
            **{name: (values, (n,)) for name, values in self.columns.items()},
            **{
                name: (values, ({"chosen_first": n, "topic": n, "family": annotators}.get(name, votes),))
                for name, values in self._known.items()
            },
        }
        for name, (values, shape) in shapes.items():
            if values.shape != shape:
                raise ValueError(f"{name} has shape {values.shape}, not {shape}")
        within = {
            "offsets": n == 0 or (self._offsets.min() >= 0 and (self._offsets + self.lengths).max() <= tokens),
            "lengths": n > 0 and self.lengths.min() >= 0,
            "vote_start": _is_partition(self._vote_start, n, votes),
            "annotator": votes == 0 or (self._annotator.min() >= 0 and self._annotator.max() < annotators),
            "topic": _indexes(self._known.get("topic"), len(self.topics)),
            "family": _indexes(self._known.get("family"), len(self.families)),
            "sign": bool(np.isin(self._sign, (-1, 1)).all()),
            "pair_id_start": _within(self._pair_id_start, (n + 1,), len(self._pair_ids)),
            "source": n == 0 or 0 <= self._source[:, 0].min() <= self._source[:, 0].max() < len(self.files),
            "ranking_start": self._ranking_start is None or _is_partition(self._ranking_start, self.rankings, n),
            "run_bounds": self._runs is None or _within(self._run_bounds, (n, 2, 2), len(self._runs)),
            "max_votes": self.max_votes >= max(np.diff(self._vote_start).max(initial=0), 1),
        }
        if outside := [name for name, fits in within.items() if not fits]:
            raise ValueError(f"{outside[0]} does not fit the other files")

    def _array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def check(self, share: int = 0, shares: int = 1) -> None:
        """Reads one of ``shares`` shares of the files, each whole. Raises :class:`DataError` if one is not as it was
        written.
        """
        names = sorted(self._digests)[share::shares]
        found = damage(self.folder, {name: self._digests[name] for name in names})
        if found is not None:
            raise DataError(_damaged(self.folder, found))

    def __len__(self) -> int:
        """Pairs."""
        return len(self.lengths)

    def judged_alone(self) -> bool:
        """Whether one side of each pair is absent: the data are completions judged alone.

        Raises:
            DataError: of some pairs only.
        """
        alone = self.lengths[:, 1:].min(1) == 0
        if alone.any() and not alone.all():
            one, other = int(np.argmax(alone)), int(np.argmin(alone))
            raise DataError(
                f"{self.where(one)} is a completion judged alone and {self.where(other)} a pair: train on one kind, or "
                "convert the pairs with nemo-rpo convert --to unpaired"
            )
        return bool(alone.any())

    @property
    def rankings(self) -> int:
        """The number of rankings; a pair by itself counts as one."""
        return len(self.ranking_lengths)

    def pairs_of(self, ranking: int) -> range:
        """The pairs of a ranking, 0 ≤ ranking < r."""
        if self._ranking_start is None:
            return range(ranking, ranking + 1)
        return range(int(self._ranking_start[ranking]), int(self._ranking_start[ranking + 1]))

    def grouping(self) -> tuple[np.ndarray, ...]:
        """Where the pairs of each ranking begin, int64 [r+1]; nothing where all are pairs by themselves."""
        return () if self._ranking_start is None else (self._ranking_start,)

    def share_of_ranking(self, block: slice) -> np.ndarray | None:
        """The weight of each pair of a run within its ranking, float32 [b]; None without rankings of more than two."""
        if self._ranking_start is None:
            return None
        counts = np.diff(self._ranking_start)
        return np.repeat((1 / counts).astype(np.float32), counts)[block]

    def _lengths_of_rankings(self) -> np.ndarray:
        start, pairs = self._ranking_start[:-1], np.diff(self._ranking_start)
        found = np.zeros((len(start), 1 + self.max_responses), dtype=np.int32)
        found[:, :3] = self.lengths[start]
        for response in range(2, self.max_responses):
            has = pairs >= pairs_of(response + 1)
            found[has, 1 + response] = self.lengths[start[has] + response - 1, 2]  # of the best one's pair with it
        return found

    def use_annotators(self, table: AnnotatorTable, unknown: int | None = None) -> None:
        """Index annotators as ``table`` does from now on, and those it lacks as ``unknown`` (None: it has them all).

        On resume it is the checkpoint's table: ``saved.extended(cache.annotators, allow_new=…)``; for validation pairs
        it is that of the training pairs.
        """
        self._position = self._own_annotators.positions(table, unknown)
        self.annotators = table

    def votes(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Annotators int64 [v] and signs int8 [v] of pair ``i``."""
        votes = slice(self._vote_start[i], self._vote_start[i + 1])
        return self._position[self._annotator[votes]], np.array(self._sign[votes])

    def all_votes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every vote, in pair order: pair int64 [v], annotator int64 [v], sign int8 [v]."""
        pair = np.repeat(np.arange(len(self)), np.diff(self._vote_start))
        return pair, self._position[self._annotator], np.array(self._sign)

    def vote_matrix(self, block: slice) -> tuple[np.ndarray, np.ndarray]:
        """Annotators int32 [b, max_votes] and signs int8 [b, max_votes] of a run of b pairs; 0 without a vote."""
        start = self._vote_start[block.start : block.stop + 1]
        counts, votes = np.diff(start), slice(start[0], start[-1])
        annotator = np.zeros((len(counts), self.max_votes), dtype=np.int32)
        sign = np.zeros((len(counts), self.max_votes), dtype=np.int8)
        filled = np.arange(self.max_votes) < counts[:, None]
        annotator[filled], sign[filled] = self._position[self._annotator[votes]], self._sign[votes]
        return annotator, sign

    def known_of_votes(self) -> dict[str, np.ndarray]:
        """What is known of votes and pairs beside who said what, by name; only what some row has, but for the lengths.

        ``shown_first`` int8 [v], +1 where the pair's chosen was shown first, −1 rejected, 0 unknown; ``strength``,
        ``confidence``, ``seconds`` float32 [v] and ``time`` float64 [v], NaN unknown; ``gold`` int8 [n] and
        ``chosen_first`` int8 [n] as in :class:`nemo_rpo.data.pairs.PairTable`; ``topic`` int32 [n], an index into
        ``topics``, −1 without one; ``family`` int32 [K] of the annotators in force, an index into ``families``, −1
        without one; ``lengths`` int64 [n, 2], tokens of chosen and rejected; ``weight`` float32 [n], of rankings.
        """
        known = {name.removeprefix("vote_"): np.array(values) for name, values in self._known.items()}
        if "family" in known:
            of_annotators = np.full(len(self.annotators), -1, dtype=np.int32)
            there = self._position < len(self.annotators)
            of_annotators[self._position[there]] = known["family"][there]
            known["family"] = of_annotators
        if self.gold.any():
            known["gold"] = np.array(self.gold)
        share = self.share_of_ranking(slice(None))
        return {**known, "lengths": self.scored_lengths(), **({} if share is None else {"weight": share})}

    def fingerprint(self) -> str:
        """Equal for the same pairs in the same order with the same labels, whatever the files are called and whichever
        release of the tokenizer library made the tokens: SHA-256, hexadecimal.
        """
        digest = hashlib.sha256()
        known = (values for name, values in sorted(self._known.items()) if name != "chosen_first")
        for column in (self.content_hash, *self.all_votes(), *self.columns.values(), *self.grouping(), *known):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def pair_id(self, i: int) -> str:
        """The id of pair ``i`` as the data has it."""
        return self._pair_ids[self._pair_id_start[i] : self._pair_id_start[i + 1]].tobytes().decode("utf-8")

    def all_pair_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all pairs in UTF-8, end to end, uint8 [bytes], and where each begins in it, int64 [n+1]."""
        return self._pair_ids, self._pair_id_start

    def all_sources(self) -> np.ndarray:
        """int64 [n, 2]: of each pair the place in ``files`` and the row that speaks of it first."""
        return self._source

    def all_prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all distinct texts, int32 [t], and where the prompt of each pair begins in them, int64 [n]."""
        return self._tokens, self._offsets[:, 0]

    def where(self, i: int) -> str:
        """``file:row`` of the first row that speaks of pair ``i``."""
        file, row = self._source[i]
        return f"{self.files[file]}:{row}"

    def pair(self, i: int) -> TokenizedPair:
        """Pair ``i``, 0 ≤ i < n: constant time, touching only the pages its tokens lie on."""
        annotator, sign = self.votes(i)
        prompt, chosen, rejected = (
            np.array(self._tokens[start : start + length])
            for start, length in zip(self._offsets[i], self.lengths[i], strict=True)
        )
        return TokenizedPair(
            prompt_ids=prompt,
            chosen_ids=chosen,
            rejected_ids=rejected,
            annotator=annotator,
            sign=sign,
            pair_id=self.pair_id(i),
            content_hash=self.content_hash[i].tobytes(),
            columns={name: float(values[i]) for name, values in self.columns.items()},
            gold=int(self.gold[i]) or None,
            chosen_runs=self._runs_of(i, 0),
            rejected_runs=self._runs_of(i, 1),
        )

    def _runs_of(self, i: int, side: int) -> np.ndarray | None:
        return None if self._runs is None else np.array(self._runs[slice(*self._run_bounds[i, side])])

    def scored_lengths(self) -> np.ndarray:
        """Tokens of chosen and rejected that are scored, int64 [n, 2]: all of them, but for what stands between turns
        of the assistant.
        """
        if self._runs is None:
            return self.lengths[:, 1:].astype(np.int64)
        return assistant_tokens(self._runs, self._run_bounds)

    def notes(self) -> list[str]:
        """Notes on the rows for the log of every start: fields that are not read, what was taken off or not added."""
        return [printable(f"{note} ({count:,})") for note, count in self.report["notes"].items()]

    def summary(self) -> str:
        """The build's counts in one sentence for the log."""
        report = self.report
        ranked = f" ({report['rankings']:,} rankings of 3 to {self.max_responses})" if report["rankings"] else ""
        text = (
            f"{counted(report['pairs'], 'pair')}{ranked} from {counted(report['rows'], 'row')}; "
            f"{counted(report['votes'], 'vote')} of "
            f"{counted(report['annotators'], 'annotator')}, {report['ties']:,} of them ties"
        )
        if report["votes_without_annotator"] and report["annotators"] > 1:
            text += f"; {counted(report['votes_without_annotator'], 'vote')} without an annotator's id, taken for one's"
        if report["truncated_prompts"]:
            text += f"; {counted(report['truncated_prompts'], 'prompt')} cut from the left"
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
        return f"{text}; left out: {dropped or 'none'}"


def _damaged(folder: Path, how: str | Exception) -> str:
    return f"the token cache {folder} is damaged ({how}); delete that folder and start again"


def _indexes(values: np.ndarray | None, size: int) -> bool:
    """Whether ``values`` are places in a list of that size, or -1."""
    return values is None or not values.size or bool(-1 <= values.min() and values.max() < size)


def _is_partition(starts: np.ndarray, parts: int, length: int) -> bool:
    """Whether ``starts`` [parts + 1] cut a range of that length into parts, one after the other."""
    if starts.shape != (parts + 1,) or starts[0] != 0 or starts[-1] != length:
        return False
    return bool((np.diff(starts) >= 0).all())


def _within(places: np.ndarray, shape: tuple[int, ...], length: int) -> bool:
    """Whether ``places`` in an array of that length have that shape, and each row of them is in order."""
    if places.shape != shape or places.size == 0:
        return False
    return bool(places.min() >= 0 and places.max() <= length and (np.diff(places) >= 0).all())
