"""``nemo-rpo annotators``: which annotators are careless and which labels are doubtful, from votes alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.commands.options.about_answers import (
    AboutAnswers,
    add_about_answers,
    asked_for,
    assess_with_answers,
    check_about_answers,
)
from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import FILES, add_row_format, row_format
from nemo_rpo.counting import counted
from nemo_rpo.crowd.crowd_settings import RULES, CrowdSettings
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.data.files.write import write_csv
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.errors import ConfigError, DataError, RowError, printable

if TYPE_CHECKING:
    from nemo_rpo.crowd.reliability import Reliability
    from nemo_rpo.data.vote_table import VoteTable
    from nemo_rpo.report.rendering.document import Section

_QUOTED = 3  # rows left out that are quoted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    defaults = CrowdSettings()
    add = parser.add_argument
    add("data", nargs="+", metavar="FILE", help=FILES)
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
    help = "have N pairs labelled again: the most informative ones for their price, and whom to ask (with --next-out)"
    add("--next", type=int, metavar="N", help=help)
    help = "file of tasks: .csv, .json (Label Studio) or .jsonl (Argilla)"
    add("--next-out", type=Path, metavar="OUT", help=help)
    add("--next-format", choices=("csv", "label_studio", "argilla"), help="format of that file (told from its name)")
    add("--budget", type=float, metavar="B", help="the most that the labels of --next may cost together")
    help = "what a label costs, by annotator (columns annotator, price); who is not in it is not asked (1 each)"
    add("--prices", type=Path, metavar="FILE", help=help)
    help = "answers to --next, as the tool exports them: count as votes too"
    add("--relabelled", type=Path, nargs="+", metavar="FILE", default=[], help=help)
    add("--overwrite", action="store_true", help="let --next-out replace a file")
    add_about_answers(parser)
    parser.description += f". No GPU, no model unless --probe names one: seconds.\n\n{RULES.format(**asdict(defaults))}"


def run(args: argparse.Namespace) -> None:
    """Prints the annotators."""
    settings = CrowdSettings(good_enough=args.good_enough, min_labels=args.min_labels, doubtful=args.doubtful)
    settings.check()
    _check_next(args)
    check_about_answers(args)
    check_outputs((args.csv, args.html, args.next_out), (*args.data, args.gold, args.prices, *args.relabelled))
    check_outputs((args.next_out,), overwrite=args.overwrite)
    table, left_out = _read(args)
    if not table.named().any():
        left_out.notes.append(
            f"no row says who labelled it ({args.annotator_key}), so all labels count as one annotator's; name the "
            "field with --annotator-key"
        )
    result, answers = assess_with_answers(table, settings, args)
    if args.csv:
        write_csv(args.csv, [asdict(row) for row in result.annotators])
    if args.html:
        _write_page(result, answers, settings, args)
    if args.next:
        left_out.notes.append(_write_next(result, args))
    if args.json:
        gone = {"rows_left_out": dict(left_out.counts), "labels_left_out": left_out.same_text}
        whole = result.to_dict() | answers.to_dict() | gone
        print(json.dumps(whole, ensure_ascii=False, indent=1))
    else:
        print(printable(f"{result}{answers.text()}"))
    for line in left_out.lines():
        print(printable(line), file=sys.stderr)


class _LeftOut:
    """Rows that cannot be read, counted by kind and quoted a few times."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.quoted: list[str] = []
        self.gold_unknown = self.same_text = 0
        self.notes: list[str] = []

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
            found.append(f"{counted(total, 'row')} left out, not readable; nemo-rpo validate shows all of them:")
            found += [f"  {line}" for line in self.quoted]
        if self.gold_unknown:
            found.append(f"left out: {counted(self.gold_unknown, 'gold label')} of pairs that nobody labelled")
        return [*found, *self.notes]


def _read(args: argparse.Namespace) -> tuple[VoteTable, _LeftOut]:
    from nemo_rpo.crowd.votes_alone import read_votes_alone

    left_out = _LeftOut()
    if alone := read_votes_alone(args.data, row_format(args), args.gold):
        if args.next or args.relabelled or asked_for(args):
            needs = "--next, --relabelled, --factors and --probe need the texts too"
            raise ConfigError(f"{args.data[0]} has votes without texts: {needs}")
        table, left_out.gold_unknown = alone
        return table, left_out
    reader = VoteReader(row_format(args), left_out)
    reader.read(args.data)
    left_out.notes += reader.warnings()
    left_out.same_text = reader.same_text
    if not len(reader.ledger):
        raise DataError("; ".join(["no row has a vote", *_first(left_out), *reader.warnings()]))
    if args.gold:
        from nemo_rpo.crowd.anchors_file import read_gold

        left_out.gold_unknown = read_gold(args.gold, reader)
    if args.relabelled:
        from nemo_rpo.conversion.relabelling import read_relabelled

        added, blank = read_relabelled(args.relabelled, reader)
        without = f"; {counted(blank, 'task')} without an answer" if blank else ""
        left_out.notes.append(f"added: {counted(added, 'vote')} of the relabelled files{without}")
    return reader.close(), left_out


def _check_next(args: argparse.Namespace) -> None:
    if args.next is None:
        for name in ("next_out", "next_format", "budget", "prices"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} goes with --next N")
        return
    if args.next < 1:
        raise ConfigError(f"--next must be 1 or more, not {args.next}")
    if args.next_out is None:
        raise ConfigError("--next needs a file to write the tasks to: --next-out tasks.csv")
    if args.budget is not None and not args.budget > 0:
        raise ConfigError(f"--budget must be above 0, not {args.budget:g}")


def _write_next(result: Reliability, args: argparse.Namespace) -> str:
    from nemo_rpo.conversion.relabelling import TOOL_OF, read_prices, write_next
    from nemo_rpo.crowd.buying import next_labels

    tool = args.next_format or TOOL_OF.get(args.next_out.suffix)
    if tool is None:
        raise ConfigError(f"{args.next_out}: the name must end in {', '.join(TOOL_OF)}, or say --next-format")
    verdicts = {row.annotator: row.verdict for row in result.annotators}
    table = result.fit.table
    trusted = [verdicts[name] != "retrain" for name in table.annotators.ids]
    prices = read_prices(args.prices) if args.prices else None
    labels = next_labels(result.fit, args.next, table.named() & trusted, args.budget, prices)
    if not labels:
        raise ConfigError("no label is within --budget")
    written = write_next(args.next_out, labels, args.data, row_format(args), tool, args.overwrite)
    cost = f" for {sum(label.price for label in labels):g}" if prices else ""
    return f"{args.next_out}: {counted(written, 'label')} to buy{cost}; read the answers back with --relabelled"


def _first(left_out: _LeftOut) -> list[str]:
    return [f"the first that cannot be read: {quoted}" for quoted in left_out.quoted[:1]]


def _write_page(result: Reliability, answers: AboutAnswers, settings: CrowdSettings, args: argparse.Namespace) -> None:
    from nemo_rpo.report.crowd.page import crowd_page
    from nemo_rpo.report.rendering.html import as_html

    document = crowd_page(result, settings, [str(path) for path in args.data], _sections(answers))
    with whole_file(args.html, ConfigError, "name another place with --html") as writing:
        writing.write_text(as_html(document), encoding="utf-8")


def _sections(answers: AboutAnswers) -> list[Section]:
    from nemo_rpo.report.crowd.drivers_section import section_of_drivers

    found = [section_of_drivers(answers.drivers)] if answers.drivers else []
    if answers.probe:
        from nemo_rpo.evaluation.probe.probe_section import section_of_probe

        found.append(section_of_probe(answers.probe, answers.words))
    return found
