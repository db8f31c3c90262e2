"""``nemo-rpo report``: what a run has learnt of its annotators, labels and policy, as a page to read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.config.places import plain_folder
from nemo_rpo.data.files.read import is_folder
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from nemo_rpo.report.rendering.document import Document, Note
    from nemo_rpo.report.run import Run

FORMATS = ("html", "markdown")
_NAME = "report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder, as nemo-rpo train writes it")
    add("--out", type=Path, metavar="DIR", help="folder for report.html, report.md and its figures (RUN)")
    add("--format", nargs="+", choices=FORMATS, default=FORMATS, help="what to write (both)")
    add("--quotes", type=int, metavar="N", help="doubtful labels to quote (20)")
    help = "CSV with columns annotator and group: compare these (bands of reliability)"
    add("--groups", type=Path, metavar="CSV", help=help)
    help = "the training files, if they are no longer where the run read them"
    add("--data", nargs="+", type=Path, metavar="FILE", default=[], help=help)
    add("--no-texts", action="store_true", help="quote no texts: for a report that others are given")


def run(args: argparse.Namespace) -> None:
    """Writes the report and prints where it is."""
    from nemo_rpo.report.build import ReportSettings, build_report
    from nemo_rpo.report.run import read_run

    out = args.out or args.run
    if args.out is not None and not is_folder(args.out):  # it is made, in a folder that is there
        check_outputs((args.out,))
    if args.quotes is not None and args.quotes < 0:
        raise ConfigError(f"--quotes must be 0 or more, got {args.quotes}")
    given = {} if args.quotes is None else {"quotes": args.quotes}
    settings = ReportSettings(groups=args.groups, data=tuple(args.data), texts=not args.no_texts, **given)
    read = read_run(args.run)
    document = build_report(read, settings, _beside_plain(read))
    for path in _write(document, out, args.format):
        print(path)


def _beside_plain(run: Run) -> Note | None:
    """What the run with the plain loss beside it says, where ``nemo-rpo train --beside-plain`` has left one."""
    from nemo_rpo.evaluation.beside_plain import compare_read, note_beside_plain
    from nemo_rpo.report.run import read_run

    folder = plain_folder(run.folder)
    if not run.cfg.model.rpo.enabled or not folder.is_dir():
        return None
    try:
        plain = read_run(folder)
        return note_beside_plain(run, compare_read(run, plain), plain)
    except DataError as exc:
        print(f"not compared with {folder}: {exc}", file=sys.stderr)
        return None


def _write(document: Document, out: Path, formats: tuple[str, ...]) -> list[Path]:
    from nemo_rpo.report.rendering.document import Figure
    from nemo_rpo.report.rendering.html import as_html
    from nemo_rpo.report.rendering.markdown import as_markdown

    files: dict[Path, str] = {}
    if "html" in formats:
        files[out / f"{_NAME}.html"] = as_html(document)
    if "markdown" in formats:
        figures = f"{_NAME}_figures"
        files[out / f"{_NAME}.md"] = as_markdown(document, figures)
        drawn = [block for section in document.sections for block in section.blocks if isinstance(block, Figure)]
        files |= {out / figures / f"{figure.name}.svg": figure.svg for figure in drawn}
    advice = "name another place with --out"
    for path, text in files.items():
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"{path.parent} cannot be made ({exc.strerror or exc}); {advice}") from exc
        with whole_file(path, ConfigError, advice) as writing:
            writing.write_text(text, encoding="utf-8")
    return [path for path in files if path.parent == out]
