"""One pass over the files: every row is read, checked and forgotten; what all of them show together comes after."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nemo_rpo.data.files.read import Paths, Record, as_paths
from nemo_rpo.data.formats import Parsed, read_parsed, unread_fields
from nemo_rpo.data.identity import PairIndex, comparisons
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.data.vote_ledger import VoteLedger
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError, RowError
from nemo_rpo.validation import crowd, together
from nemo_rpo.validation.findings import CHECKS, Findings
from nemo_rpo.validation.languages import LanguageChecks
from nemo_rpo.validation.report import ValidationReport, agreement, spread, vote_counts, votes_per_pair
from nemo_rpo.validation.texts import Problem, TextChecks, flat
from nemo_rpo.validation.tokens import TokenChecks
from nemo_rpo.validation.validation_settings import ValidationSettings
from nemo_rpo.validation.votes import repeats

NO_PAIR = -1
_ONCE = ("no_chat_template",)  # what is the tokenizer's fault and the same in every row


@dataclass
class Exclusions:
    """What a clean file leaves out, each with the kind of finding that is the reason.

    Attributes:
        pair_of_row: of every readable row in turn, its pair; -1 for a row that contradicts an earlier one.
            Of a ranking the first pair with an error, if any has one.
        rows, pairs, votes: by readable row, pair and vote, counted from 0.
        unreadable: rows that could not be read, by kind.
    """

    pair_of_row: array = field(default_factory=lambda: array("q"))
    rows: dict[int, str] = field(default_factory=dict)
    pairs: dict[int, str] = field(default_factory=dict)
    votes: dict[int, str] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """The outcome: the report, and what :func:`nemo_rpo.validation.clean.write_clean` needs to read the files again."""

    paths: list[Path]
    settings: ValidationSettings
    report: ValidationReport
    exclusions: Exclusions


def validate(paths: Paths, settings: ValidationSettings | None = None) -> Validation:
    """Reads the files once and reports what they hold and what is wrong with them.

    Memory grows by some hundred bytes a pair and a vote; texts are never held.

    Raises:
        DataError: a file that is missing, empty or damaged as a whole, or an unusable tokenizer.
        ConfigError: an unknown layout, or settings that do not fit together.
        MissingExtraError: a Parquet file, a saved data set or a tokenizer without its package.
    """
    settings = settings or ValidationSettings()
    settings.check()
    checked = as_paths(paths, setting="the path", folders=True)
    reading = _Reading(settings)
    for parsed in read_parsed(checked, settings.keys, reading.unreadable):
        reading.enter(parsed)
    return Validation(checked, settings, reading.close(), reading.exclusions)


class _Reading:
    """A validation in progress."""

    def __init__(self, settings: ValidationSettings) -> None:
        self.settings = settings
        self.findings = Findings(settings.examples)
        self.exclusions = Exclusions()
        self.pairs = PairIndex()
        self.votes = VoteLedger()
        self.files: dict[str, str] = {}
        self.languages = LanguageChecks() if settings.languages else None
        self.tokens = _token_checks(settings)
        self.texts = TextChecks(judge=self.tokens is None)
        self.unread: Counter[str] = Counter()
        self._last: Record | None = None

    def unreadable(self, error: DataError) -> None:
        """Counts a row that cannot be read. Raises ``error`` itself where it is about more than a row."""
        if not isinstance(error, RowError):
            raise error
        self.findings.add_error(error)
        self.exclusions.unreadable[error.kind] = self.exclusions.unreadable.get(error.kind, 0) + 1

    def enter(self, parsed: Parsed) -> None:
        """Looks at a row; of a ranking at each of its pairs."""
        self.files.setdefault(parsed.row.file, parsed.layout)
        if parsed.record is not self._last:  # which may say several rows
            self._last = parsed.record
            self.unread.update(unread_fields(parsed.record, self.settings.keys, parsed.layout))
        number = len(self.exclusions.pair_of_row)
        rows = comparisons(parsed.row) if parsed.row.further else (parsed.row,)
        pairs = [self._enter_pair(row, number) for row in rows]
        # A ranking is trained on whole: any pair of it that cannot be decides about the row.
        self.exclusions.pair_of_row.append(next((pair for pair in pairs if pair in self.exclusions.pairs), pairs[0]))

    def _enter_pair(self, row: PreferenceRow, number: int) -> int:
        try:
            sighting = self.pairs.find(row)
            self.votes.add(row, sighting)
        except RowError as exc:
            self.findings.add_error(exc)
            self.exclusions.rows[number] = exc.kind
            return NO_PAIR
        if row.pair_id is None and not any(flat(text).strip() for text in (row.prompt, *row.responses)):
            self.findings.add("no_text", row.file, row.row, "")
        if sighting.new:
            for kind, problem in self._problems(row):
                if kind not in _ONCE or not self.findings.counts[kind]:
                    self.findings.add(kind, row.file, row.row, problem)
                if CHECKS[kind].severity == "error":
                    self.exclusions.pairs.setdefault(sighting.text, kind)
        return sighting.text

    def _problems(self, row: PreferenceRow) -> Iterator[Problem]:
        usable = True
        for kind, problem in self.texts(row):
            usable &= CHECKS[kind].severity != "error"
            yield kind, problem
        for checks in (self.tokens, self.languages):
            if usable and checks:
                for kind, problem in checks(row):
                    usable &= CHECKS[kind].severity != "error"
                    yield kind, problem

    def close(self) -> ValidationReport:
        """What all rows said, and what they show together."""
        table = self.votes.close(self.pairs)
        repeated = self._repeats(table)
        crowd.check(self.findings, table, self.settings.min_labels)
        for pair in np.flatnonzero(table.counts()[:, :2].sum(1) == 0):
            self.findings.add("no_signed_vote", *self.pairs.first_row(int(pair)), "")
        of_all = together.look(table)
        crowd.report_together(self.findings, table, of_all)
        readable = len(self.exclusions.pair_of_row)
        return ValidationReport(
            files=self.files,
            rows=readable,
            unreadable=sum(self.exclusions.unreadable.values()),
            pairs=len(self.pairs),
            votes=vote_counts(table),
            judged_alone=int(table.alone.sum()),
            names_winner=bool(table.winner_first().all()),
            votes_per_pair=votes_per_pair(table),
            annotators=int(table.named().sum()),
            labels_per_annotator=spread(table.labels(signed=False)[table.named()]),
            signed_labels_per_annotator=spread(table.labels(signed=True)[table.named()]),
            agreement=agreement(table, repeated),
            gold=int((table.gold != 0).sum()),
            longest=self.tokens.longest if self.tokens and self.tokens.longest["prompt"] else {},
            languages=dict(self.languages.prompts.most_common()) if self.languages else {},
            not_checked=self.texts.not_checked,
            unread=dict(self.unread.most_common()),
            notes=dict(self.tokens.notes.most_common()) if self.tokens else {},
            together=of_all,
            findings=self.findings,
        )

    def _repeats(self, table: VoteTable) -> np.ndarray:
        """Reports votes given twice; returns which votes repeat an annotator's own, bool [v]."""
        repeated = np.zeros(len(table), dtype=bool)
        for repeat in repeats(table):
            kind, problem = crowd.describe(table, repeat)
            self.findings.add(kind, *table.place(repeat.vote), problem)
            named = not table.unnamed[repeat.vote]
            repeated[repeat.vote] = named
            if kind == "contradiction":
                self.exclusions.votes[repeat.earlier] = kind
            if kind != "opposite_unnamed":
                self.exclusions.votes.setdefault(repeat.vote, kind)
        return repeated


def _token_checks(settings: ValidationSettings) -> TokenChecks | None:
    if settings.tokenizer is None or settings.seq_length is None:
        return None
    spec = TokenizerSpec(settings.tokenizer, settings.use_chat_template)
    return TokenChecks(PreferenceTokenizer.load(spec), settings.seq_length)
