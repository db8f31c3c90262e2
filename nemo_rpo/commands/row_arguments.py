"""The options by which commands are told how to read rows."""

from __future__ import annotations

import argparse

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.formats import LAYOUTS


def add_row_format(parser: argparse.ArgumentParser) -> None:
    """``--layout``, ``--annotator-key``, ``--pair-id-key``, ``--columns``."""
    defaults = RowFormat()
    parser.add_argument(
        "--layout",
        choices=("auto", *LAYOUTS),
        default=defaults.layout,
        metavar="LAYOUT",
        help=f"how the rows are laid out (auto: told from the fields of the first row); or {', '.join(LAYOUTS)}",
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
    parser.add_argument(
        "--columns",
        type=_columns,
        default=defaults.columns,
        metavar="NAME=COLUMN,…",
        help="what the file calls prompt, response_a, response_b, vote, annotator, …: annotator=WorkerId,vote=best",
    )


FILES = "JSONL, JSONL.gz, JSON, CSV, TSV or Parquet files, or saved Hugging Face data sets"


def row_format(args: argparse.Namespace) -> RowFormat:
    """How the rows of the files are to be read, from the parsed arguments."""
    return RowFormat(args.layout, args.annotator_key, args.pair_id_key, args.columns)


def _columns(text: str) -> dict[str, str]:
    """``annotator=WorkerId,prompt=Input.text`` as a mapping.

    >>> _columns("annotator=WorkerId,prompt=Input.text")
    {'annotator': 'WorkerId', 'prompt': 'Input.text'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not column.strip() for name, _, column in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of NAME=COLUMN, …")
    return {name.strip(): column.strip() for name, _, column in pairs}
