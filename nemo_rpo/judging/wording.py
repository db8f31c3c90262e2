"""The judges as a person reads about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nemo_rpo.judging.belief import Believed
from nemo_rpo.judging.habits import Habits
from nemo_rpo.shares import Share
from nemo_rpo.text_table import format_table

_HEADER = [
    "judge", "verdicts", "unread", "ties", "reliability", "95 %", "says first | first", "second | second",
    "leans to first", "log BF", "same twice", "s", "verdict",
]  # fmt: skip


def as_text(believed: Believed) -> str:
    """The judges, who was switched off, then the label model's own words."""
    known = {row.annotator: row for row in believed.reliability.annotators}
    rows = [_cells(habits, known.get(habits.judge)) for habits in believed.habits]
    parts = [format_table(_HEADER, rows)] if rows else []
    parts += list(switched_off(believed))
    return "\n\n".join([*parts, str(believed.reliability)])


def switched_off(believed: Believed) -> Iterator[str]:
    """A line for each judge whose verdicts do not count."""
    for habits in believed.habits:
        if habits.off:
            yield f"warning: judge {habits.judge} is switched off: {habits.off}"


def as_rows(believed: Believed) -> list[dict[str, Any]]:
    """The judges for a CSV file."""
    known = {row.annotator: asdict(row) for row in believed.reliability.annotators}
    found = []
    for habits in believed.habits:
        of = known.get(habits.judge, {})
        row: dict[str, Any] = {"judge": habits.judge, "verdicts": habits.verdicts, "unparsed": habits.unparsed}
        row |= {name: of.get(name) for name in ("labels", "reliability", "low", "high", "agreement", "verdict")}
        for name in ("ties", "alpha", "beta", "consistent"):
            value: Share = getattr(habits, name)
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        row |= {"delta": habits.delta, "position_log_bayes_factor": habits.position}
        found.append({**row, "seconds": habits.seconds, "off": habits.off})
    return [{name: None if value != value else value for name, value in row.items()} for row in found]


def _cells(habits: Habits, quality: Any) -> list[str]:
    known = quality is not None and quality.reliability is not None
    return [
        habits.judge,
        f"{habits.verdicts:,}",
        f"{habits.unparsed:,}",
        _share(habits.ties),
        f"{quality.reliability:.3f}" if known else "–",
        f"{quality.low:.2f}–{quality.high:.2f}" if known else "–",
        _share(habits.alpha),
        _share(habits.beta),
        "–" if habits.delta is None else f"{habits.delta:+.3f}",
        "–" if habits.position is None else f"{habits.position:+.1f}",
        _share(habits.consistent),
        f"{habits.seconds:.2g}",
        "off" if habits.off else quality.verdict if quality is not None else "–",
    ]


def _share(value: Share) -> str:
    return f"{value.value:.3f}" if value.n else "–"
