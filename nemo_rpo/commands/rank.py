"""``nemo-rpo rank``: a leaderboard from wins, losses and ties."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.rankings import by_prompt, over_time, picture, second_looks, surer
from nemo_rpo.counting import counted
from nemo_rpo.data.files.write import write_csv
from nemo_rpo.errors import ConfigError, printable
from nemo_rpo.ranking import (
    ComparisonFormat,
    Comparisons,
    Leaderboard,
    RankSettings,
    Standing,
    leaderboard,
    read_comparisons,
)
from nemo_rpo.ranking.over_time.history import ranks_over_time
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings
from nemo_rpo.ranking.ranking_settings import Resample, Ties
from nemo_rpo.ranking.standings import COMPARE
from nemo_rpo.text_table import format_table

_NAMES = {"elo": "Elo ratings", "trueskill": "TrueSkill ratings"}
_SHOWN = 100  # players and annotators a terminal is given; --json and --csv have all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    names, defaults = ComparisonFormat(), RankSettings()
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA", help="JSONL, JSONL.gz, JSON, CSV, TSV or Parquet files, a comparison a row")
    add("--a-key", default=names.a_key, metavar="FIELD", help=f"field with one player ({names.a_key})")
    add("--b-key", default=names.b_key, metavar="FIELD", help=f"field with the other player ({names.b_key})")
    help = f"field that says a, b or tie, model_a or model_b, or who won ({names.winner_key})"
    add("--winner-key", default=names.winner_key, metavar="FIELD", help=help)
    add("--annotator-key", default=names.annotator_key, metavar="FIELD", help=f"who said so ({names.annotator_key})")
    add("--ties", choices=get_args(Ties), default=defaults.ties, help=f"how ties count ({defaults.ties})")
    help = f"wins and losses given to every player beforehand; 0: maximum likelihood ({defaults.prior:g})"
    add("--prior", type=float, default=defaults.prior, metavar="C", help=help)
    add("--crowd-bt", action="store_true", help="estimate the annotators' reliability too, and weigh them by it")
    help = f"resamples for the intervals; 0: none ({defaults.bootstrap})"
    add("--bootstrap", type=int, default=defaults.bootstrap, metavar="B", help=help)
    help = f"what is drawn anew ({defaults.resample})"
    add("--resample", choices=get_args(Resample), default=defaults.resample, help=help)
    help = f"of the intervals ({defaults.confidence})"
    add("--confidence", type=float, default=defaults.confidence, metavar="SHARE", help=help)
    add("--seed", type=int, default=defaults.seed, help=f"of the resampling ({defaults.seed})")
    for name in COMPARE:
        add(
            f"--{name}",
            dest="compare",
            action="append_const",
            const=name,
            default=[],
            help=f"show {_NAMES[name]} beside",
        )
    add("--json", action="store_true", help="print the result as JSON")
    add("--csv", type=Path, metavar="OUT", help="write the players to a CSV file too")
    for also in (picture, over_time, second_looks, by_prompt, surer):
        also.add_arguments(parser)


def run(args: argparse.Namespace) -> int | None:
    """Prints the leaderboard."""
    keys = ComparisonFormat(args.a_key, args.b_key, args.winner_key, args.annotator_key)
    keys = replace(keys, time_key=args.time_key if args.over_time else None)
    settings = RankSettings(
        ties=args.ties,
        prior=args.prior,
        crowd_bt=args.crowd_bt,
        bootstrap=args.bootstrap,
        resample=args.resample,
        confidence=args.confidence,
        seed=args.seed,
    )
    settings.check()
    outs = (args.csv, args.plot, args.judge_next, args.out)
    check_outputs(outs, (*args.data, args.features, args.costs, args.selective))
    through_time = over_time.settings_of(args)
    second_looks.check(args)
    picture.check(args)
    by_prompt.check(args)
    surer.check(args)
    if args.by_prompt:
        return by_prompt.run(args, settings)
    if args.selective:
        surer.run(args, read_comparisons(args.data, surer.keys_of(args)), settings)
        return None
    comparisons = read_comparisons(args.data, keys)
    if args.over_time:
        _over_time(args, comparisons, settings, through_time)
        return None
    board = leaderboard(comparisons, settings, args.compare, _progress(settings.bootstrap))
    looks = second_looks.looks(args, comparisons, settings)
    if args.plot:
        picture.write(picture.of_look(*looks.values(), comparisons, board), args.plot)
    if args.csv:
        write_csv(args.csv, [asdict(player) for player in board.players])
    if args.json:
        print(json.dumps(board.to_dict() | second_looks.to_dict(looks), ensure_ascii=False, indent=1))
    else:
        parts = [*_text(board, args.compare), *(part for look in looks.values() for part in second_looks.text(look))]
        print(printable("\n\n".join(parts)))
    return None


def _over_time(
    args: argparse.Namespace, comparisons: Comparisons, settings: RankSettings, through_time: OverTimeSettings
) -> None:
    if args.robust or args.audit or args.interval is not None or args.compare:
        raise ConfigError("--over-time stands alone: leave out --robust, --audit, --interval, --elo and --trueskill")
    history = ranks_over_time(comparisons, settings, through_time)
    if args.plot:
        picture.write(picture.of_history(history), args.plot)
    if args.csv:
        write_csv(args.csv, over_time.rows_of(history))
    if args.json:
        print(json.dumps(history.to_dict(), ensure_ascii=False, indent=1))
    else:
        print(printable("\n\n".join(over_time.text(history))))


def _text(board: Leaderboard, compare: Sequence[str]) -> Iterator[str]:
    ties = f", ties with ν = {board.tie_strength:.3f}" if board.tie_strength else ""
    ties += f" ({counted(board.ties_left_out, 'tie')} left out)" if board.ties_left_out else ""
    yield f"{counted(board.comparisons, 'comparison')} of {counted(len(board.players), 'player')}{ties}"
    header = ["player", "rank", "score", "interval", "rating", "wins", "losses", "ties", *compare]
    yield format_table(header, [_cells(player, compare) for player in board.players[:_SHOWN]]) + _more(board.players)
    if board.annotators:
        leans = ["leans to first"] if board.annotators[0].leaning is not None else []
        rows = [
            [
                row.annotator,
                f"{row.labels:,}",
                f"{row.eta:.3f}",
                f"{row.standard_error:.3f}",
                *([] if row.leaning is None else [f"{row.leaning:+.2f}"]),
            ]
            for row in board.annotators[:_SHOWN]
        ]
        yield format_table(["annotator", "labels", "η", "± se", *leans], rows) + _more(board.annotators)
    for warning in board.warnings:
        yield f"warning: {warning}"


def _cells(player: Standing, compare: Sequence[str]) -> list[str]:
    rank, interval = f"{player.rank}", ""
    if player.low is not None:
        rank += f" ({player.rank_low}-{player.rank_high})"
        interval = f"{player.low:+.3f} to {player.high:+.3f}"
    cells = [player.player, rank, f"{player.score:+.3f}", interval, f"{player.rating:.0f}"]
    cells += [f"{count:,}" for count in (player.wins, player.losses, player.ties)]
    beside = {
        "elo": lambda: f"{player.elo:.0f}",
        "trueskill": lambda: f"{player.trueskill:.2f} ± {player.trueskill_sigma:.2f}",
    }
    return cells + [beside[name]() for name in compare]


def _more(rows: Sequence[object]) -> str:
    return f"\n… {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""


def _progress(resamples: int) -> Callable[[int], None] | None:
    if not sys.stderr.isatty():
        return None

    def show(done: int) -> None:
        print(
            f"\rresample {done} of {resamples}", end="" if done < resamples else "\r\033[K", file=sys.stderr, flush=True
        )

    return show
