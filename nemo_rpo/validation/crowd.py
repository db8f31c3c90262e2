"""What the votes of all rows show about the people who gave them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from nemo_rpo.validation.findings import Findings
from nemo_rpo.validation.votes import UNNAMED, Repeat, VoteTable


def check(findings: Findings, table: VoteTable, min_labels: int) -> None:
    """Labels without a name among named ones, names that nearly agree, annotators with few labels."""
    if len(table.annotators) > 1:
        for vote in np.flatnonzero(table.annotator == UNNAMED):
            findings.add("missing_annotator", *table.where(int(vote)), "")
    first = _first_votes(table)
    spellings = defaultdict(list)
    for annotator in range(1, len(table.annotators)):
        spellings["".join(table.annotators[annotator].split()).casefold()].append(annotator)
    for known, *others in spellings.values():
        for other in others:
            problem = f"annotator '{table.annotators[other]}' looks like '{table.annotators[known]}'"
            findings.add("similar_annotators", *table.where(first[other]), problem)
    labels = table.labels(signed=True)
    for annotator in np.flatnonzero(labels < min_labels):
        if annotator != UNNAMED:
            problem = (
                f"annotator '{table.annotators[annotator]}': signed labels {labels[annotator]}, under {min_labels}"
            )
            findings.add("few_labels", *table.where(first[annotator]), problem)


def describe(table: VoteTable, repeat: Repeat) -> tuple[str, str]:
    """Kind and words of a vote that comes on top of an earlier one by the same annotator, or by nobody in name."""
    name = table.annotators[table.annotator[repeat.vote]]
    file, row = table.where(repeat.earlier)
    earlier = "in the same row" if table.where(repeat.vote) == (file, row) else f"at {file}:{row}"
    who = f"annotator '{name}'" if table.annotator[repeat.vote] != UNNAMED else "someone unnamed"
    if repeat.same:
        return "duplicate_vote", f"{who} says the same of this pair {earlier}"
    kind = "contradiction" if table.annotator[repeat.vote] != UNNAMED else "opposite_unnamed"
    return kind, f"{who} says {table.words(repeat.vote)} here and otherwise {earlier}"


def _first_votes(table: VoteTable) -> dict[int, int]:
    annotators, first = np.unique(table.annotator, return_index=True)
    return dict(zip(annotators.tolist(), first.tolist(), strict=True))
