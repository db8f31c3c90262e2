"""The options by which commands are told how to read rows."""

from __future__ import annotations

import argparse

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import LAYOUTS


def add_row_format(parser: argparse.ArgumentParser) -> None:
    """``--layout``, ``--annotator-key``, ``--pair-id-key``."""
    defaults = RowFormat()
    parser.add_argument(
        "--layout",
        choices=("auto", *LAYOUTS),
        default=defaults.layout,
        help="how the rows are laid out (auto: told from the fields of the first row)",
    )
    parser.add_argument(
        "--annotator-key",
        default=defaults.annotator_key,
        metavar="FIELD",
        help=f"field with the annotator's id ({defaults.annotator_key})",
    )
    parser.add_argument(
        "--pair-id-key",
        default=defaults.pair_id_key,
        metavar="FIELD",
        help=f"field with the pair's id ({defaults.pair_id_key})",
    )


def row_format(args: argparse.Namespace) -> RowFormat:
    """How the rows of the files are to be read, from the parsed arguments."""
    return RowFormat(args.layout, args.annotator_key, args.pair_id_key)
