"""What the votes of all rows show about the people who gave them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.validation.findings import Findings
from nemo_rpo.validation.together import Together
from nemo_rpo.validation.votes import Repeat, words


def check(findings: Findings, table: VoteTable, min_labels: int) -> None:
    """Labels without a name among named ones, names that nearly agree, annotators with few labels."""
    named, first, ids = table.named(), table.first_vote(), table.annotators.ids
    if named.any():
        for vote in np.flatnonzero(table.unnamed):
            findings.add("missing_annotator", *table.place(int(vote)), "")
    spellings = defaultdict(list)
    for annotator in np.argsort(first, kind="stable"):
        if named[annotator]:
            spellings["".join(ids[annotator].split()).casefold()].append(annotator)
    for known, *others in spellings.values():
        for other in others:
            problem = f"annotator '{ids[other]}' looks like '{ids[known]}'"
            findings.add("similar_annotators", *table.place(first[other]), problem)
    labels = table.labels(signed=True)
    for annotator in np.flatnonzero(named & (labels < min_labels)):
        problem = f"annotator '{ids[annotator]}': signed labels {labels[annotator]}, under {min_labels}"
        findings.add("few_labels", *table.place(first[annotator]), problem)


def report_together(findings: Findings, table: VoteTable, together: Together) -> None:
    """Votes that follow the order of the responses, and what the label model warns of."""
    if together.order is not None and together.order.follows:
        order = together.order
        which = "was shown first" if order.shown else "stands first in its row"
        share = f"{order.first / order.pairs:.0%} of the votes (one a pair, {order.pairs:,} pairs)"
        problem = f"{share} are for the response that {which} (p = {order.p_value:.1g} if order meant nothing)"
        findings.add("votes_follow_order", *table.place(0), problem)
    for warning in together.warnings:
        findings.add("crowd", *table.place(0), warning["text"])


def describe(table: VoteTable, repeat: Repeat) -> tuple[str, str]:
    """Kind and words of a vote that comes on top of an earlier one by the same annotator, or by nobody in name."""
    unnamed = table.unnamed[repeat.vote]
    file, row = table.place(repeat.earlier)
    earlier = "in the same row" if table.place(repeat.vote) == (file, row) else f"at {file}:{row}"
    who = "someone unnamed" if unnamed else f"annotator '{table.annotators.ids[table.annotator[repeat.vote]]}'"
    if repeat.same:
        return "duplicate_vote", f"{who} says the same of this pair {earlier}"
    kind = "opposite_unnamed" if unnamed else "contradiction"
    return kind, f"{who} says {words(table, repeat.vote)} here and otherwise {earlier}"
