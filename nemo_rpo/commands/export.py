"""``nemo-rpo export``: what a run has learnt, as data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.counting import counted
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.export.cleaned import LAYOUTS, ExportSettings, Wrong

if TYPE_CHECKING:
    from nemo_rpo.report.run import Run

_LIMIT = 200
_RELABELLER = "relabelled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add, defaults = parser.add_argument, ExportSettings()
    add("run", type=Path, metavar="RUN", help="a run's folder, as nemo-rpo train writes it")
    help = (
        "doubtful labels for an annotation tool, the cleaned training data, the weights of the annotators, or the "
        "labels of one group of taste"
    )
    add("what", choices=tuple(_WRITE), help=help)
    help = "file to write: .csv (not for data), .jsonl, .jsonl.gz, .parquet; without a suffix a Hugging Face data set"
    add("--out", type=Path, required=True, metavar="OUT", help=help)
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    help = (
        f"a label is believed to be wrong where the probability that it is right is below this ({defaults.threshold})"
    )
    add("--threshold", type=float, default=defaults.threshold, metavar="W", help=help)
    help = "the training files, if they are no longer where the run read them"
    add("--data", nargs="+", type=Path, metavar="FILE", default=[], help=help)
    doubtful = parser.add_argument_group("doubtful")
    doubtful.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"most labels to write ({_LIMIT})")
    help = "leave out who gave the label, what it says, and what the model thinks of it"
    doubtful.add_argument("--blind", action="store_true", help=help)
    group = parser.add_argument_group("group")
    help = "of a run with base_loss=pal: the group whose preferences to write, a label a pair with its weight"
    group.add_argument("--group", type=int, metavar="G", help=help)
    data = parser.add_argument_group("data, group")
    data.add_argument("--to", choices=LAYOUTS, default=defaults.to, help=f"layout to write ({defaults.to})")
    help = f"what becomes of labels that are believed to be wrong ({defaults.wrong}); weigh: all get a field weight"
    data.add_argument("--wrong", choices=get_args(Wrong), default=defaults.wrong, help=help)
    help = "of data: add what is believed of each pair, for sppo, egpo, gpo: win_rate, win_rate_chosen, …"
    data.add_argument("--win-rates", action="store_true", help=help)
    help = "the file of doubtful labels with its column relabel filled in (a, b or tie): these replace the old labels"
    data.add_argument("--relabelled", type=Path, metavar="FILE", help=help)
    help = f"annotator of relabelled rows that name none ({_RELABELLER})"
    data.add_argument("--relabelled-as", default=_RELABELLER, metavar="NAME", help=help)


def run(args: argparse.Namespace) -> None:
    """Writes, and prints what was written."""
    from nemo_rpo.report.run import read_run
    from nemo_rpo.report.source import training_files

    if args.limit < 1:
        raise ConfigError(f"--limit must be 1 or more, got {args.limit}")
    ExportSettings(args.to, args.wrong, args.threshold).check()
    found = read_run(args.run)
    if found.labels is None:
        raise DataError(f"{args.run} was trained with model.rpo.enabled=false: it has judged no label")
    files = (*args.run.glob("*"), *training_files(found, args.data), args.relabelled)
    check_outputs((args.out,), files, args.overwrite)
    _WRITE[args.what](args, found)


def _doubtful(args: argparse.Namespace, found: Run) -> None:
    from nemo_rpo.export import write_doubtful
    from nemo_rpo.report.source import Source

    source = Source(found, args.data)
    count = write_doubtful(found, source, args.out, args.limit, args.threshold, args.blind, args.overwrite)
    print(f"{args.out}: {counted(count, 'label')}, the most doubtful first; fill in relabel with a, b or tie")


def _data(args: argparse.Namespace, found: Run) -> None:
    from nemo_rpo.export import read_relabelled, write_cleaned
    from nemo_rpo.report.source import Source

    source = Source(found, args.data)
    relabelled = read_relabelled(args.relabelled, found, args.relabelled_as) if args.relabelled else None
    settings = ExportSettings(args.to, args.wrong, args.threshold, args.win_rates)
    cleaning = write_cleaned(found, source, args.out, settings, relabelled, args.overwrite)
    print(f"{args.out}: {counted(cleaning.written, 'row')}")
    print("labels: " + ", ".join(f"{count:,} {what}" for what, count in sorted(cleaning.done.items())))
    if relabelled and relabelled.unanswered:
        print(f"{args.relabelled}: {counted(relabelled.unanswered, 'row')} without an answer, nothing changed there")
    for what, count in cleaning.lost.items():
        if count:
            print(f"left out: {what}: {count:,}")


def _group(args: argparse.Namespace, found: Run) -> None:
    from nemo_rpo.export.group_labels import check_group, write_group_labels
    from nemo_rpo.report.source import Source

    group = check_group(found, args.group)
    settings = ExportSettings(args.to)
    written = write_group_labels(found, Source(found, args.data), group, args.out, settings, args.overwrite)
    print(f"{args.out}: {counted(written.written, 'row')}, the preferences of group {args.group}")
    print("pairs: " + ", ".join(f"{count:,} {what}" for what, count in sorted(written.done.items())))
    for what, count in written.lost.items():
        if count:
            print(f"left out: {what}: {count:,}")


def _annotators(args: argparse.Namespace, found: Run) -> None:
    from nemo_rpo.export import write_annotator_weights

    print(
        f"{args.out}: {write_annotator_weights(found, args.out, args.overwrite):,} annotators, the least reliable first"
    )


_WRITE: dict[str, Callable[[argparse.Namespace, Run], None]] = {
    "doubtful": _doubtful,
    "data": _data,
    "annotators": _annotators,
    "group": _group,
}
