"""``nemo-rpo convert``: a preference file in another layout or file format."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import FILES, add_row_format, row_format
from nemo_rpo.conversion import WRITERS, WRITERS_OF_ALONE, convert
from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError, printable
from nemo_rpo.judging.score_rule import RULES, ScoreRule

_OF_SCORES = ("scores", "weights", "margin", "best", "gap", "quantile", "pick")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA", help=FILES)
    add("--to", required=True, choices=(*WRITERS, *WRITERS_OF_ALONE), help="layout to write")
    add(
        "--out",
        required=True,
        type=Path,
        metavar="OUT",
        help="file to write (.jsonl, .jsonl.gz, .json, .parquet, .csv), or without a suffix the folder of a Hugging "
        "Face data set",
    )
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    _add_scores(parser)
    add_row_format(parser)
    parser.description += ". Pair ids and annotator ids are kept; what the new layout has no place for is said."


def run(args: argparse.Namespace) -> None:
    """Converts, and prints what was written and what was lost."""
    check_outputs((args.out,), args.data, args.overwrite)
    if args.pairs_from_scores:
        from nemo_rpo.judging.pairs_from_scores import convert_scores

        done = convert_scores(args.data, args.to, args.out, _rule(args), row_format(args), args.overwrite)
    else:
        if given := [name for name in _OF_SCORES if getattr(args, name) is not None]:
            raise ConfigError(f"--{given[0]} goes with --pairs-from-scores")
        done = convert(args.data, args.to, args.out, row_format(args), args.overwrite)
    print(
        f"{args.out}: {counted(done.written, 'row')}, from {counted(done.pairs, 'pair')} in {counted(done.rows, 'row')}"
    )
    for what, count in done.lost.items():
        if count:
            print(printable(f"left out: {what}: {count:,}"))


def _add_scores(parser: argparse.ArgumentParser) -> None:
    add, defaults = parser.add_argument, ScoreRule()
    help = "DATA are rows of a prompt, responses and scores of each; make pairs of them by this rule"
    add("--pairs-from-scores", choices=RULES, help=help)
    help = f"fields with the scores, a list of one value a response ({','.join(defaults.scores)})"
    add("--scores", type=_names, metavar="NAME,…", help=help)
    add("--weights", type=_numbers, metavar="W,…", help="of the scores, for harmonic (equal ones)")
    help = f"difference at or below which two responses are not told apart ({defaults.margin:g})"
    add("--margin", type=float, metavar="M", help=help)
    add("--best", type=float, help=f"pass_rate: the better response must score this at least ({defaults.best:g})")
    add("--gap", type=float, help=f"pass_rate: and be better by this at least ({defaults.gap:g})")
    help = f"all_good: this quantile of a prompt's scores is good enough ({defaults.quantile:g})"
    add("--quantile", type=float, metavar="Q", help=help)
    help = f"all pairs of a row, or its best response with its worst ({defaults.pick})"
    add("--pick", choices=("all", "extremes"), help=help)


def _rule(args: argparse.Namespace) -> ScoreRule:
    given = {name: getattr(args, name) for name in _OF_SCORES if getattr(args, name) is not None}
    return ScoreRule(rule=args.pairs_from_scores, **given)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers") from None
