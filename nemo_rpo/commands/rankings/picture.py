"""``nemo-rpo rank --plot``: the picture of the one thing that was asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_rpo.commands.rankings.over_time import moment
from nemo_rpo.commands.rankings.second_looks import Look
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError
from nemo_rpo.ranking import Comparisons, Leaderboard
from nemo_rpo.ranking.audits.audit import Audit
from nemo_rpo.ranking.over_time.history import History
from nemo_rpo.ranking.pair_table import table_of
from nemo_rpo.ranking.second_opinion.robust_table import SecondOpinion

_SUFFIX = ".svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the option to the command's parser."""
    help = "draw it: strengths over time or by topic, one second look, or accuracy by confidence"
    parser.add_argument("--plot", type=Path, metavar=f"OUT{_SUFFIX}", help=help)


def check(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` where there is nothing to draw, or more than one thing."""
    if args.plot is None:
        return
    drawn = args.over_time + args.robust + args.audit + (args.interval is not None)
    drawn += (args.by_prompt is not None) + (args.selective is not None)
    if drawn != 1:
        raise ConfigError(
            "--plot draws one of --over-time, --robust, --audit, --interval, --by-prompt and --selective: give exactly "
            "one of them"
        )
    if args.plot.suffix != _SUFFIX:
        raise ConfigError(f"--plot writes SVG: end {args.plot.name} in {_SUFFIX}")


def of_history(history: History) -> str:
    """SVG of strengths over time."""
    from nemo_rpo.report.rendering.ranking_plots import strengths_over_time

    return strengths_over_time(history, moment)


def of_look(look: Look, comparisons: Comparisons, board: Leaderboard) -> str:
    """SVG of a second look."""
    from nemo_rpo.report.rendering import ranking_plots

    if isinstance(look, SecondOpinion):
        return ranking_plots.believed_shares(look)
    if isinstance(look, Audit):
        place = {name: i for i, name in enumerate(comparisons.players)}
        order = [place[player.player] for player in board.players]
        return ranking_plots.wins(table_of(comparisons), comparisons.players, order, look.violations)
    return ranking_plots.course(look)


def write(svg: str, out: Path) -> None:
    """The picture as a file; raises :class:`ConfigError` if it cannot be written."""
    with whole_file(out, ConfigError, "name another place") as writing:
        writing.write_text(svg, encoding="utf-8")
