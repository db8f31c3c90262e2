"""The report as a person reads it on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_rpo.counting import counted
from nemo_rpo.errors import printable
from nemo_rpo.validation.findings import CHECKS, SEVERITIES
from nemo_rpo.validation.report import ValidationReport

_SHOWN = 3  # findings of a kind that are quoted; --json has more
_SIZES = 6  # numbers of votes a pair that are listed


def as_text(report: ValidationReport) -> str:
    """Files, counts, agreement, and every kind of finding with its first rows and what to do."""
    lines = [f"{file}: layout {layout}" for file, layout in report.files.items()]
    lines += ["", *_aligned(list(_counts(report)))]
    for severity in SEVERITIES:
        kinds = report.findings.of(severity)
        if kinds:
            lines += ["", f"{severity}s"]
        for kind in kinds:
            lines += _finding(report, kind)
    if report.not_checked:
        lines += ["", "not checked"]
        lines += [f"  {CHECKS[kind].title}: {reason}" for kind, reason in report.not_checked.items()]
    if report.together.left_out:
        lines += ["", f"not looked at: {report.together.left_out}"]
    if report.notes:
        lines += ["", "training says"]
        lines += [f"  {note} ({counted(count, 'pair')})" for note, count in report.notes.items()]
    lines += ["", f"{counted(report.errors, 'error')}, {counted(report.warnings, 'warning')}"]
    return printable("\n".join(lines))


def _counts(report: ValidationReport) -> Iterator[tuple[str, str, str]]:
    votes, agreement = report.votes, report.agreement
    yield "rows", f"{report.rows:,}", f"{report.unreadable:,} more cannot be read" if report.unreadable else ""
    yield "pairs", f"{report.pairs:,}", f"{report.gold:,} with a gold label" if report.gold else ""
    # Where rows name the winner, "first" is what a pair's first label says, and no order that anybody was shown.
    first, second = ("as the pair's first label", "the opposite") if report.names_winner else ("first", "second")
    if report.judged_alone:
        yield (
            "judged alone",
            f"{report.judged_alone:,}",
            "completions without another: the first is good, the second bad",
        )
        first, second = "good", "bad"
    detail = f"{first} {votes['first']:,}, {second} {votes['second']:,}, tie {votes['ties']:,}"
    yield "votes", f"{votes['all']:,}", detail
    yield "votes a pair", "", _sizes(report.votes_per_pair)
    detail = f"{counted(votes['without_annotator'], 'vote')} without one" if votes["without_annotator"] else ""
    yield "annotators", f"{report.annotators:,}", detail
    if report.annotators:
        yield "labels each", "", _spread(report.labels_per_annotator)
        yield "signed labels each", "", _spread(report.signed_labels_per_annotator)
    if agreement.pairs_with_several_votes:
        detail = (
            f"{agreement.not_unanimous:,} of {counted(agreement.pairs_with_several_votes, 'pair')} with several votes"
        )
        yield "not unanimous", f"{agreement.not_unanimous / agreement.pairs_with_several_votes:.1%}", detail
        yield "Krippendorff's α", _alpha(agreement.alpha), f"without ties {_alpha(agreement.alpha_signed)}"
    if report.together.order is not None:
        order = report.together.order
        which = "the order shown" if order.shown else "the order of the file"
        yield "for the first", f"{order.first / order.pairs:.1%}", f"of {counted(order.pairs, 'pair')}, by {which}"
    if report.together.dependence:
        found = report.together.dependence
        detail = f"independent errors: {found['expected_spread']:.2f}; annotators agree with some, and with others not"
        yield "spread of agreement", f"{found['spread']:.2f}", detail
    if report.longest:
        detail = ", ".join(f"{name} {tokens:,}" for name, tokens in report.longest.items())
        yield "longest in tokens", "", detail
    if report.languages:
        detail = ", ".join(f"{language} {pairs:,}" for language, pairs in report.languages.items())
        yield "prompts' languages", "", detail
    if report.unread:
        yield "fields not read", f"{len(report.unread):,}", ", ".join(f"{n} ({c:,})" for n, c in report.unread.items())


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    name, number = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"{row[0]:{name}}  {row[1]:>{number}}  {row[2]}".rstrip() for row in rows]


def _finding(report: ValidationReport, kind: str) -> Iterator[str]:
    check, count, kept = CHECKS[kind], report.findings.counts[kind], report.findings.kept[kind]
    yield f"  {count:,} × {check.title}: {check.advice}"
    for found in kept[:_SHOWN]:
        problem = "" if found.problem == check.title else f": {' '.join(found.problem.split())}"
        yield f"      {found.where}{problem}"
    if count > _SHOWN:
        yield f"      … {count - min(_SHOWN, len(kept)):,} more"


def _sizes(votes_per_pair: dict[int, int]) -> str:
    commonest = sorted(sorted(votes_per_pair, key=votes_per_pair.__getitem__, reverse=True)[:_SIZES])
    shown = ", ".join(f"{votes}: {counted(votes_per_pair[votes], 'pair')}" for votes in commonest)
    return shown + (", …" if len(votes_per_pair) > _SIZES else "")


def _spread(spread: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.1f}".removesuffix(".0") for name, value in spread.items())


def _alpha(alpha: float | None) -> str:
    return "undefined" if alpha is None else f"{alpha:.3f}"
