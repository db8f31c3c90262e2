"""``nemo-rpo judge``: verdicts of several judges on pairs, and whom of them to believe."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import add_row_format, row_format
from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.errors import ConfigError, printable

_VOTES, _BELIEVED, _JUDGES = "votes.jsonl", "believed.parquet", "judges.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    help = "pairs in any layout, or rows of prompt, response_a and response_b; labels of people in them count as votes"
    add("pairs", nargs="+", type=Path, metavar="PAIRS", help=help)
    add_row_format(parser)
    add(
        "--judges",
        type=Path,
        required=True,
        metavar="YAML",
        help="judges: [{name, kind: chat|reward|program|combined|surrogate, …}, …]",
    )
    help = "folder for votes.jsonl, believed.parquet, judges.csv and the verdicts; the same again goes on from there"
    add("--out", type=Path, required=True, metavar="DIR", help=help)
    help = "gold labels: pair_id and gold (a or b), or rows of the same pairs with a field gold"
    add("--gold", type=Path, metavar="FILE", help=help)
    add("--no-labels", action="store_true", help="leave out what the files say of the pairs: the judges alone count")
    help = f"reliability asked of a judge ({CrowdSettings.good_enough:g})"
    add("--good-enough", type=float, default=CrowdSettings.good_enough, metavar="SHARE", help=help)
    add("--json", action="store_true", help="print the result as JSON")
    parser.description += (
        ". Each verdict is kept as it comes: after a kill or a dead server the same command asks for the rest. The "
        "exit status is 2 while verdicts are missing. votes.jsonl is a file that nemo-rpo train takes."
    )


def run(args: argparse.Namespace) -> None:
    """Judges, prints the judges, and writes what they said."""
    from nemo_rpo.data.files.write import write_csv
    from nemo_rpo.judging.belief import believe, write_believed
    from nemo_rpo.judging.collecting import TABLE, collect, judges_from
    from nemo_rpo.judging.judged_pairs import pairs_to_judge, write_votes
    from nemo_rpo.judging.judging_settings import read_judges
    from nemo_rpo.judging.wording import as_rows, as_text

    logging.getLogger("httpx2").setLevel(logging.WARNING)
    crowd = CrowdSettings(good_enough=args.good_enough)
    crowd.check()
    settings, blocks = read_judges(args.judges)
    judges = judges_from(blocks, args.out)
    pairs, unknown = pairs_to_judge(args.pairs, row_format(args), args.gold, labels=not args.no_labels)
    try:
        args.out.mkdir(exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{args.out} cannot be made ({exc.strerror or exc}); name another place with --out") from exc
    made = [args.out / name for name in (_VOTES, _BELIEVED, _JUDGES, TABLE)]
    check_outputs(made, (*args.pairs, args.gold, args.judges))
    judged = collect(judges, pairs, args.out, settings)
    believed = believe(pairs, judged, crowd)
    written = write_votes(args.out / _VOTES, pairs, believed.votes)
    write_believed(args.out / _BELIEVED, pairs, believed)
    write_csv(args.out / _JUDGES, as_rows(believed))
    if args.json:
        print(json.dumps({"judges": as_rows(believed), **believed.reliability.to_dict()}, ensure_ascii=False, indent=1))
    else:
        print(printable(as_text(believed)))
    if unknown:
        print(f"{unknown:,} gold labels are for pairs that are not there", file=sys.stderr)
    print(f"{args.out / _VOTES}: {written:,} pairs with their votes", file=sys.stderr)
