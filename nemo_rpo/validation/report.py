"""What a file holds, in numbers, and how it is said: as a table for people, as JSON for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.validation.agreement import krippendorff_alpha
from nemo_rpo.validation.findings import CHECKS, SEVERITIES, Findings
from nemo_rpo.validation.together import Together


@dataclass(frozen=True)
class Agreement:
    """Attributes: α over first, second and tie; α over signed votes; pairs with several votes; those not unanimous."""

    alpha: float | None
    alpha_signed: float | None
    pairs_with_several_votes: int
    not_unanimous: int


@dataclass(frozen=True)
class ValidationReport:
    """The outcome of a validation.

    Attributes:
        files: file name to layout. rows: readable ones. unreadable: the others. pairs: distinct ones.
        votes: for the completion that stands first in a pair's first row, for the second, ties, without annotator.
        votes_per_pair: votes to number of pairs that have so many.
        annotators: named ones. labels_per_annotator, signed_labels_per_annotator: min, median, max over them.
        gold: pairs with a gold label.
        longest: tokens, with a tokenizer. languages: pairs by the language of their prompt, if that was asked for.
        not_checked: what was not looked at, and why.
        unread: rows that have a value in a field that means nothing in their layout, by field.
        notes: pairs by what was done with their texts, or left undone: see
            :class:`nemo_rpo.data.tokenizers.preference.PreferenceTokenizer`.
        together: what all votes show together: the order shown, the dependence of errors.
        judged_alone: of the pairs, completions that were judged alone.
        names_winner: whether every row names a winner, so that the order of a pair is what its first label says.
    """

    files: dict[str, str]
    rows: int
    unreadable: int
    pairs: int
    votes: dict[str, int]
    votes_per_pair: dict[int, int]
    annotators: int
    labels_per_annotator: dict[str, float]
    signed_labels_per_annotator: dict[str, float]
    agreement: Agreement
    gold: int
    longest: dict[str, int]
    languages: dict[str, int]
    not_checked: dict[str, str]
    unread: dict[str, int]
    notes: dict[str, int]
    together: Together
    findings: Findings
    names_winner: bool = False
    judged_alone: int = 0

    @property
    def errors(self) -> int:
        """Findings that training would refuse."""
        return self._count("error")

    @property
    def warnings(self) -> int:
        """Findings that training takes."""
        return self._count("warning")

    def _count(self, severity: str) -> int:
        return sum(self.findings.counts[kind] for kind in self.findings.of(severity))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        plain = {name: value for name, value in vars(self).items() if name not in ("findings", "agreement", "together")}
        findings = [
            {
                "kind": kind,
                "severity": severity,
                "title": CHECKS[kind].title,
                "count": self.findings.counts[kind],
                "examples": [
                    {"file": found.file, "row": found.row, "problem": found.problem}
                    for found in self.findings.kept[kind]
                ],
            }
            for severity in SEVERITIES
            for kind in self.findings.of(severity)
        ]
        return {
            **plain,
            "agreement": asdict(self.agreement),
            "together": self.together.to_dict(),
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": findings,
        }


def vote_counts(table: VoteTable) -> dict[str, int]:
    """How many votes of each kind the files hold."""
    first, second, ties = table.counts().sum(0).tolist()
    unnamed = int(table.unnamed.sum())
    return {"all": len(table), "first": first, "second": second, "ties": ties, "without_annotator": unnamed}


def votes_per_pair(table: VoteTable) -> dict[int, int]:
    """Number of votes on a pair → number of such pairs."""
    return dict(sorted(Counter(table.counts().sum(1).tolist()).items()))


def spread(labels: np.ndarray) -> dict[str, float]:
    """Least, median and most labels of the named annotators who gave any; nothing without one."""
    if not len(labels):
        return {}
    return {"min": int(labels.min()), "median": float(np.median(labels)), "max": int(labels.max())}


def agreement(table: VoteTable, repeated: np.ndarray) -> Agreement:
    """Over the votes that are not ``repeated`` (bool [v]): agreeing with oneself is not agreement.

    Which completion of a pair comes first means nothing (in a layout that names a winner it is the first vote's), so α
    takes every pair in both orders: it is then the same in every layout. Good and bad do mean something: a completion
    judged alone is one unit.
    """
    counts = table.counts(~repeated)
    both = np.concatenate([counts, counts[~table.alone][:, [1, 0, 2]]])
    several = counts[counts.sum(1) >= 2]
    return Agreement(
        alpha=krippendorff_alpha(both),
        alpha_signed=krippendorff_alpha(both[:, :2]),
        pairs_with_several_votes=len(several),
        not_unanimous=int(((several > 0).sum(1) > 1).sum()),
    )
