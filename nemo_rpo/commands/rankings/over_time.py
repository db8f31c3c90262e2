"""``nemo-rpo rank --over-time``: strengths that change."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError
from nemo_rpo.ranking.over_time.history import History
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings
from nemo_rpo.text_table import format_table

_SURE = 3.0  # log Bayes factor for a walk, from which strengths are said to move
_A_DATE = 1e8  # seconds since 1970, in 1973: smaller numbers are rounds or steps
_SHOWN = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to the command's parser."""
    group, defaults = parser.add_argument_group("over time"), OverTimeSettings()
    add = group.add_argument
    add("--over-time", action="store_true", help="follow strengths through time, as a Gaussian walk")
    help = f"field with the time of a comparison, a number or a date and time ({defaults.time_key})"
    add("--time-key", default=defaults.time_key, metavar="FIELD", help=help)
    help = f"width of a slice of time, such as 12h, 7d or a number (a {defaults.slices}th of the span)"
    add("--slice", default=defaults.width, metavar="WIDTH", help=help)
    help = "standard deviation of a strength's change from slice to slice; 0: none (what the evidence says)"
    add("--walk", type=float, metavar="SD", help=help)
    help = "a player known not to change, which the others are measured against; may be repeated"
    add("--unchanged", action="append", default=[], metavar="PLAYER", help=help)


def settings_of(args: argparse.Namespace) -> OverTimeSettings:
    """Raises :class:`ConfigError` for options that are out of range or need ``--over-time``."""
    if not args.over_time:
        for name in ("slice", "walk", "unchanged"):
            if getattr(args, name) not in (None, "", []):
                raise ConfigError(f"--{name} goes with --over-time")
    settings = OverTimeSettings(
        time_key=args.time_key, width=args.slice, walk=args.walk, unchanged=args.unchanged, seed=args.seed
    )
    settings.check()
    return settings


def text(history: History) -> Iterator[str]:
    """The parts of the answer for a terminal."""
    begin, end = (moment(history.begin + k * history.width, history.begin) for k in (0, history.slices))
    yield (
        f"{counted(history.comparisons, 'comparison')} of {counted(len(history.players), 'player')} in "
        f"{counted(history.slices, 'slice')} of time, {begin} to {end}"
    )
    yield _walk(history)
    sure = history.evidence is None or history.evidence > _SURE
    rows = [
        [
            player.player, f"{player.rank}", f"{player.score:+.3f}", f"{player.low:+.3f} to {player.high:+.3f}",
            f"{player.change:+.3f}", f"{player.change_low:+.3f} to {player.change_high:+.3f}",
            player.moved if sure else "", f"{player.comparisons:,}",
        ]
        for player in history.players[:_SHOWN]
    ]  # fmt: skip
    header = ["player", "rank", "score now", "interval", "change", "interval", "", "comparisons"]
    more = f"\n… {len(history.players) - _SHOWN:,} more" if len(history.players) > _SHOWN else ""
    yield format_table(header, rows) + more


def _walk(history: History) -> str:
    if history.walk == 0:
        return "strengths stand still: the scores are those of the table without time"
    over_all = history.walk * history.slices**0.5
    found = f"strengths walk by {history.walk:.3f} a slice, {over_all:.2f} over the whole span"
    if history.evidence is None:
        return f"{found} (as given)"
    if history.evidence > _SURE:
        return f"{found} (log Bayes factor {history.evidence:+.1f} against strengths that stand still)"
    return (
        f"nothing says that anybody has changed (log Bayes factor of a walk {history.evidence:+.1f}, {_SURE:g} would "
        "do): the table without --over-time has all there is to know"
    )


def rows_of(history: History) -> list[dict[str, Any]]:
    """A row for every player and slice that it played in, for CSV."""
    return [
        {"player": player.player, "time": time, "score": score, "low": low, "high": high}
        for player in history.players
        for time, score, low, high in zip(
            player.time, player.strength, player.strength_low, player.strength_high, strict=True
        )
    ]


def moment(seconds: float, begin: float) -> str:
    """As a date where the numbers are times since 1970, else as the number."""
    if begin < _A_DATE:
        return f"{seconds:g}"
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M}"
