"""``nemo-rpo convert``: a preference file in another layout or file format."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_rpo.commands.row_arguments import FILES, add_row_format, row_format
from nemo_rpo.conversion import WRITERS, WRITERS_OF_ALONE, convert
from nemo_rpo.counting import counted
from nemo_rpo.errors import printable


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
    add_row_format(parser)
    parser.description += ". Pair ids and annotator ids are kept; what the new layout has no place for is said."


def run(args: argparse.Namespace) -> None:
    """Converts, and prints what was written and what was lost."""
    done = convert(args.data, args.to, args.out, row_format(args), args.overwrite)
    print(
        f"{args.out}: {counted(done.written, 'row')}, from {counted(done.pairs, 'pair')} in {counted(done.rows, 'row')}"
    )
    for what, count in done.lost.items():
        if count:
            print(printable(f"left out: {what}: {count:,}"))
