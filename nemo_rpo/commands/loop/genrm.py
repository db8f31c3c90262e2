"""``nemo-rpo genrm``: rows that train a judge, from what is believed of judged pairs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import add_row_format, row_format
from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError, DataError, printable

VERDICTS, RATIONALES, PROMPTS = "verdicts", "rationales", "prompts"
_LEAST, _MOST = 0.5, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    add("pairs", nargs="+", type=Path, metavar="PAIRS", help="the files that nemo-rpo judge was given")
    add_row_format(parser)
    add("--judges", type=Path, required=True, metavar="YAML", help="the judges, as for nemo-rpo judge")
    add("--judge", metavar="NAME", help="which of them is trained (the only chat or generative one)")
    help = (
        "verdicts: the word for the response that is believed to be better against the other one; rationales: sampled "
        "answers that end in the believed verdict against others; prompts: what to sample such answers to"
    )
    add("--to", choices=(VERDICTS, RATIONALES, PROMPTS), default=VERDICTS, help=help)
    add("--believed", type=Path, metavar="DIR", help="what nemo-rpo judge wrote, or its believed.parquet")
    help = "answers that nemo-rpo sample drew from the rows of --to prompts (rationales)"
    add("--responses", type=Path, metavar="FILE", help=help)
    help = f"leave out pairs whose better response is believed less than this ({_LEAST:g})"
    add("--least", type=float, default=_LEAST, metavar="P", help=help)
    add("--most", type=int, default=_MOST, metavar="N", help=f"rationale rows of a pair and order ({_MOST})")
    add("--out", type=Path, required=True, metavar="OUT", help="file to write (.jsonl, .parquet, …)")
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.description += (
        ". Every pair stands in both orders. Rows have win_rate, the probability of what they say: the losses genrm "
        "(verdicts) and mmpo (rationales) take it as a soft label."
    )


def run(args: argparse.Namespace) -> None:
    """Writes the rows, and prints how many there are and what was left out."""
    from nemo_rpo.data.files.write import record_writer
    from nemo_rpo.judging.genrm_rows import Teaching, judge_named, read_beliefs
    from nemo_rpo.judging.judged_pairs import pairs_to_judge
    from nemo_rpo.judging.judging_settings import read_judges
    from nemo_rpo.sampling.collecting import read_responses

    _check(args)
    believed = args.believed and (args.believed / "believed.parquet" if args.believed.is_dir() else args.believed)
    check_outputs((args.out,), (*args.pairs, args.judges, believed, args.responses), args.overwrite)
    _, blocks = read_judges(args.judges)
    judge = judge_named(args.judge, blocks, args.judges)
    pairs, _ = pairs_to_judge(args.pairs, row_format(args), labels=False)
    p_a = {} if args.to == PROMPTS else read_beliefs(args.believed, pairs)
    teaching = Teaching(judge, pairs, p_a, args.least)
    if args.to == RATIONALES:
        rows = teaching.rationale_rows(read_responses(args.responses).kept, args.most)
    else:
        rows = teaching.prompt_rows() if args.to == PROMPTS else teaching.verdict_rows()
    written = 0
    with record_writer(args.out, args.overwrite) as write:
        for row in rows:
            write(row)
            written += 1
        if not written:
            why = "; ".join(f"{what}: {count:,}" for what, count in teaching.left_out.items() if count)
            raise DataError(f"no row is left to write to {args.out}{why and f' ({why})'}")
    print(f"{args.out}: {counted(written, 'row')} from {counted(len(pairs), 'pair')}, each in both orders")
    for why, count in teaching.left_out.items():
        if count:
            print(printable(f"left out: {why}: {count:,}"), file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    if args.to != PROMPTS and args.believed is None:
        raise ConfigError(f"--to {args.to} needs --believed, the folder that nemo-rpo judge wrote")
    if (args.to == RATIONALES) != (args.responses is not None):
        raise ConfigError("--responses goes with --to rationales, and --to rationales needs them")
    if not 0.5 <= args.least <= 1 or args.most < 1:
        raise ConfigError("--least must be between 0.5 and 1, and --most 1 or more")
