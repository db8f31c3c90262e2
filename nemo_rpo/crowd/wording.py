"""The result as a person reads it: on a terminal, or in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from nemo_rpo.counting import counted
from nemo_rpo.errors import printable
from nemo_rpo.text_table import format_table

if TYPE_CHECKING:
    from nemo_rpo.crowd.by_annotator import AnnotatorQuality
    from nemo_rpo.crowd.reliability import Reliability

_SHOWN = 60  # annotators on a terminal
_TEXT = 28  # characters of an id
# Columns that stand only where some annotator has a value.
_OPTIONAL = ("says_first", "drift", "seconds", "repeats", "family")


def as_text(result: Reliability) -> str:
    """Counts, annotators, doubtful labels, estimates, warnings."""
    parts = [headline(result), *(f"warning: {warning.text}" for warning in result.warnings)]
    header, rows = annotator_cells(result)
    parts.append(format_table(header, rows[:_SHOWN]) + _more(rows, _SHOWN))
    if result.doubtful:
        parts.append("most doubtful labels\n" + format_table(*doubtful_cells(result)))
    parts.append("\n".join(estimate_lines(result)))
    return "\n\n".join(parts)


def as_notebook(result: Reliability) -> str:
    """The same as HTML tables, every text escaped."""
    warnings = "".join(f"<p><b>Warning:</b> {escape(printable(w.text))}</p>" for w in result.warnings)
    tables = [("annotators", *annotator_cells(result)), ("most doubtful labels", *doubtful_cells(result))]
    drawn = "".join(_html(caption, header, rows[:_SHOWN]) for caption, header, rows in tables if rows)
    lines = "".join(f"<p>{escape(line)}</p>" for line in estimate_lines(result))
    return f"<p>{escape(headline(result))}</p>{warnings}{drawn}{lines}"


def headline(result: Reliability) -> str:
    """What was looked at, and how many annotators have each verdict."""
    counts = result.counts
    gold = f", {counted(counts['gold'], 'gold label')}" if counts["gold"] else ""
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in result.verdicts().items())
    return (
        f"{counted(counts['pairs'], 'pair')}, {counted(counts['votes'], 'vote')} ({counted(counts['ties'], 'tie')}), "
        f"{counted(counts['annotators'], 'annotator')}{gold}\n{verdicts}"
    )


def annotator_cells(result: Reliability) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the annotators' table."""
    shown = [name for name in _OPTIONAL if any(getattr(row, name) for row in result.annotators)]
    titles = {"says_first": "says first", "drift": "later half", "repeats": "repeats same"}
    header = ["annotator", "labels", "reliability", "95 %", "agreement", *(titles.get(name, name) for name in shown)]
    return [*header, "verdict", "why"], [_cells(row, shown) for row in result.annotators]


def doubtful_cells(result: Reliability) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the doubtful labels."""
    header = ["where", "pair", "annotator", "says", "P(right)", "others"]
    rows = [
        [label.where, _short(label.pair), _short(label.annotator), label.says, _chance(label.right), label.others]
        for label in result.doubtful
    ]
    return header, rows


def estimate_lines(result: Reliability) -> Iterator[str]:
    """The estimates side by side, and which to use; what speaks for every feature."""
    for estimate in result.estimates:
        mark = "  <- recommended" if estimate.recommended else ""
        if estimate.right is not None:
            interval = f"{estimate.low:.3f} to {estimate.high:.3f}"
            yield f"{estimate.name}: right on {estimate.right:.3f} of held-out gold labels ({interval}){mark}"
    [recommended] = [estimate for estimate in result.estimates if estimate.recommended]
    if recommended.right is None:
        yield f"labels by: {recommended.name} (gold labels of 20 to 80 pairs would judge it: --gold)"
    yield from (f"feature {feature}" for feature in result.features)


def _cells(row: AnnotatorQuality, optional: Sequence[str]) -> list[str]:
    known = row.reliability is not None
    cells = [
        _short(row.annotator),
        f"{row.labels:,}",
        f"{row.reliability:.3f}" if known else "–",
        f"{row.low:.2f}–{row.high:.2f}" if known else "–",
        "–" if row.agreement is None else f"{row.agreement:.2f}",
    ]
    beside = {
        "says_first": lambda: f"{row.says_first:.2f} ({row.says_first_low:.2f}–{row.says_first_high:.2f})",
        "drift": lambda: f"{round(row.drift, 2) + 0.0:+.2f}",
        "seconds": lambda: f"{row.seconds:.1f}",
        "repeats": lambda: f"{row.repeats_same}/{row.repeats}",
        "family": lambda: _short(row.family),
    }
    cells += ["–" if getattr(row, name) is None else beside[name]() for name in optional]
    return [*cells, row.verdict, row.reason]


def _html(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(printable(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _short(name: str) -> str:
    return name if len(name) <= _TEXT else name[: _TEXT - 1] + "…"


def _more(rows: Sequence[object], shown: int) -> str:
    return f"\n… {len(rows) - shown:,} more (--csv and --json have all)" if len(rows) > shown else ""


def _chance(probability: float) -> str:
    return "< 0.001" if 0 < probability < 0.001 else f"{probability:.3f}"
