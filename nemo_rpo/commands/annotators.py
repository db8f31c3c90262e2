"""``nemo-rpo annotators``: which annotators are careless and which labels are doubtful, from votes alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.commands.row_arguments import add_row_format, row_format
from nemo_rpo.crowd.crowd_settings import RULES, CrowdSettings
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.data.files.write import write_csv
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.errors import ConfigError, DataError, RowError, printable

if TYPE_CHECKING:
    from nemo_rpo.crowd.reliability import Reliability

_QUOTED = 3  # rows left out that are quoted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    defaults = CrowdSettings()
    add = parser.add_argument
    add(
        "data", nargs="+", metavar="FILE", help="JSONL, JSONL.gz, CSV or Parquet files, or saved Hugging Face data sets"
    )
    add_row_format(parser)
    help = "gold labels: pair_id and gold (a or b), or rows of the same pairs with a field gold"
    add("--gold", type=Path, metavar="FILE", help=help)
    help = f"reliability asked of an annotator ({defaults.good_enough:g})"
    add("--good-enough", type=float, default=defaults.good_enough, metavar="SHARE", help=help)
    help = f"signed labels below which there is no verdict ({defaults.min_labels})"
    add("--min-labels", type=int, default=defaults.min_labels, metavar="N", help=help)
    help = f"labels listed as the most doubtful ({defaults.doubtful})"
    add("--doubtful", type=int, default=defaults.doubtful, metavar="N", help=help)
    add("--json", action="store_true", help="print the result as JSON")
    add("--csv", type=Path, metavar="OUT", help="write the annotators to a CSV file too")
    add("--html", type=Path, metavar="OUT", help="write one page to read, with a figure")
    parser.description += f". No GPU, no model: seconds.\n\n{RULES.format(**asdict(defaults))}"


def run(args: argparse.Namespace) -> None:
    """Prints the annotators."""
    settings = CrowdSettings(good_enough=args.good_enough, min_labels=args.min_labels, doubtful=args.doubtful)
    settings.check()
    for out in (args.csv, args.html):
        if out and not out.parent.is_dir():
            raise ConfigError(f"folder {out.parent} does not exist; make it, or name another place")
    reader, left_out = _read(args)
    from nemo_rpo.crowd.reliability import assess

    result = assess(reader.close(), settings)
    if args.csv:
        write_csv(args.csv, [asdict(row) for row in result.annotators])
    if args.html:
        _write_page(result, settings, args)
    if args.json:
        print(json.dumps(result.to_dict() | {"rows_left_out": dict(left_out.counts)}, ensure_ascii=False, indent=1))
    else:
        print(printable(str(result)))
    for line in left_out.lines():
        print(printable(line), file=sys.stderr)


class _LeftOut:
    """Rows that cannot be read, counted by kind and quoted a few times."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.quoted: list[str] = []
        self.gold_unknown = 0

    def __call__(self, error: DataError) -> None:
        if not isinstance(error, RowError):
            raise error
        self.counts[error.kind] += 1
        if len(self.quoted) < _QUOTED:
            self.quoted.append(str(error))

    def lines(self) -> list[str]:
        """What to tell the user."""
        found = []
        if total := self.counts.total():
            found.append(f"{total:,} rows cannot be read and were left out; nemo-rpo validate shows all of them:")
            found += [f"  {line}" for line in self.quoted]
        if self.gold_unknown:
            found.append(f"{self.gold_unknown:,} gold labels are for pairs that nobody labelled")
        return found


def _read(args: argparse.Namespace) -> tuple[VoteReader, _LeftOut]:
    left_out = _LeftOut()
    reader = VoteReader(row_format(args), left_out)
    reader.read(args.data)
    if not len(reader.ledger):
        raise DataError(f"no row has a vote{_first(left_out)}")
    if args.gold:
        from nemo_rpo.crowd.anchors_file import read_gold

        left_out.gold_unknown = read_gold(args.gold, reader)
    return reader, left_out


def _first(left_out: _LeftOut) -> str:
    return f"; the first that cannot be read: {left_out.quoted[0]}" if left_out.quoted else ""


def _write_page(result: Reliability, settings: CrowdSettings, args: argparse.Namespace) -> None:
    from nemo_rpo.report.crowd.page import crowd_page
    from nemo_rpo.report.rendering.html import as_html

    document = crowd_page(result, settings, [str(path) for path in args.data])
    with whole_file(args.html, ConfigError, "name another place with --html") as writing:
        writing.write_text(as_html(document), encoding="utf-8")
