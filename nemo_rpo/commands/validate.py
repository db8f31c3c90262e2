"""``nemo-rpo validate``: what is wrong with a preference file, before anything is trained on it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nemo_rpo.commands.options.outputs import check_outputs
from nemo_rpo.commands.row_arguments import FILES, add_row_format, row_format
from nemo_rpo.data.files.write import sink_for
from nemo_rpo.validation import ValidationReport, ValidationSettings, validate, write_clean
from nemo_rpo.validation.text_report import as_text

FOUND = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to its parser."""
    defaults = ValidationSettings()
    add = parser.add_argument
    add("data", nargs="+", metavar="DATA", help=FILES)
    add_row_format(parser)
    add("--tokenizer", metavar="DIR", help="a Hugging Face tokenizer folder: look at lengths and truncation too")
    add("--use-chat-template", action="store_true", help="render rows of plain text with the chat template too")
    add("--seq-length", type=int, metavar="N", help="tokens of prompt + response that training will have")
    add("--languages", action="store_true", help="tell languages, and find completions in another one than the prompt")
    add(
        "--min-labels",
        type=int,
        default=defaults.min_labels,
        metavar="N",
        help=f"signed labels below which an annotator is reported ({defaults.min_labels})",
    )
    add(
        "--examples",
        type=int,
        default=defaults.examples,
        metavar="N",
        help=f"rows of each kind of finding in the JSON ({defaults.examples})",
    )
    add("--json", action="store_true", help="print the result as JSON")
    add("--strict", action="store_true", help="let warnings fail as errors do")
    add("--fix", type=Path, metavar="OUT", help="write a file without what is wrong (.jsonl, .jsonl.gz, .parquet)")
    add("--overwrite", action="store_true", help="let --fix replace a file")
    parser.description += (
        ". The exit status is 0 where training can begin, 1 where it cannot (with --strict also where there are "
        "warnings), 2 where a file cannot be read at all."
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 if there are findings that fail."""
    settings = ValidationSettings(
        keys=row_format(args),
        tokenizer=args.tokenizer,
        use_chat_template=args.use_chat_template,
        seq_length=args.seq_length,
        languages=args.languages,
        min_labels=args.min_labels,
        examples=args.examples,
    )
    check_outputs((args.fix,), args.data, args.overwrite)
    if args.fix:
        sink_for(args.fix)
    validation = validate(args.data, settings)
    left_out = write_clean(validation, args.fix, args.overwrite) if args.fix else None
    if args.json:
        result = validation.report.to_dict()
        if left_out:
            result["fixed"] = {"out": str(args.fix), **left_out.to_dict()}
        print(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        print(as_text(validation.report))
        if left_out:
            print(f"\n{args.fix}\n{left_out.as_text()}")
    return FOUND if _fails(validation.report, args.strict) else 0


def _fails(report: ValidationReport, strict: bool) -> bool:
    return report.errors > 0 or (strict and report.warnings > 0)
