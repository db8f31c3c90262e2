"""``nemo-rpo rank SURER --selective ANSWERS``: which of two questions a model is surer of, as scores of confidence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nemo_rpo.commands.rankings import picture
from nemo_rpo.counting import counted
from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.files.write import write_csv
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.errors import ConfigError, DataError, printable
from nemo_rpo.ranking import ComparisonFormat, Comparisons, RankSettings, fit, others
from nemo_rpo.ranking.selective import accuracy_curve, auc_interval, selective_auc
from nemo_rpo.text_table import format_table

KEYS = ComparisonFormat("question_a", "question_b", "said")


class Answers(NamedTuple):
    """Of each question: whether its answer was right, and what else the model said of its confidence, by column."""

    correct: dict[str, float]
    beside: dict[str, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this way's arguments to those of ``rank``."""
    of = parser.add_argument_group("confidence")
    help = (
        "file with question and correct a row; DATA then say which of two questions a model is surer of "
        "(question_a, question_b, said)"
    )
    of.add_argument("--selective", type=Path, metavar="ANSWERS", help=help)
    help = "columns of ANSWERS with an absolute confidence, to stand beside (confidence, where there is one)"
    of.add_argument("--absolute", nargs="+", metavar="FIELD", help=help)


def check(args: argparse.Namespace) -> None:
    """Raises :class:`ConfigError` for an option that needs ``--selective``."""
    if args.absolute is not None and args.selective is None:
        raise ConfigError("--absolute goes with --selective ANSWERS")


def keys_of(args: argparse.Namespace) -> ComparisonFormat:
    """The fields of a comparison: those given, and the names of questions for those that were not."""
    given = ComparisonFormat(args.a_key, args.b_key, args.winner_key, args.annotator_key)
    plain = ComparisonFormat()
    changed = {name: value for name, value in vars(given).items() if value != getattr(plain, name)}
    return ComparisonFormat(**{**vars(KEYS), **changed})


def run(args: argparse.Namespace, comparisons: Comparisons, settings: RankSettings) -> None:
    """Prints the AUC of selective classification of each score."""
    if args.over_time or args.robust or args.audit or args.interval is not None:
        raise ConfigError("--selective stands alone: leave out --over-time, --robust, --audit and --interval")
    answers = read_answers(args.selective, args.absolute)
    questions = comparisons.players
    if missing := [name for name in questions if name not in answers.correct]:
        raise DataError(
            f"{args.selective} does not say whether the answer to '{missing[0]}' was right, nor to "
            f"{len(missing) - 1:,} others of the {len(questions):,} questions: add them"
        )
    scores = {"bradley-terry": fit(comparisons, settings).strengths.log_strength}
    rate = {"elo": lambda: others.elo(comparisons), "trueskill": lambda: others.trueskill(comparisons)[0]}
    scores |= {name: rate[name]() for name in args.compare}
    scores |= {name: _column(args.selective, questions, name, of) for name, of in answers.beside.items()}
    correct = np.array([answers.correct[name] for name in questions])
    found = {name: selective_auc(score, correct) for name, score in scores.items()}
    intervals = {}
    if settings.bootstrap:
        intervals = auc_interval(scores, correct, settings.bootstrap, settings.confidence, settings.seed)
    if args.plot:
        from nemo_rpo.report.rendering.ranking_plots import accuracy_by_coverage

        curves = {name: accuracy_curve(score, correct) for name, score in scores.items()}
        picture.write(accuracy_by_coverage(curves), args.plot)
    if args.csv:
        rows = [{"question": name, "correct": correct[i]} for i, name in enumerate(questions)]
        write_csv(args.csv, [row | {of: float(score[i]) for of, score in scores.items()} for i, row in enumerate(rows)])
    figures = {name: {"auc": auc, "interval": intervals.get(name)} for name, auc in found.items()}
    differences = {name: interval for name, interval in intervals.items() if name not in found}
    if args.json:
        said = {"questions": len(questions), "accuracy": correct.mean(), "scores": figures, "differences": differences}
        print(json.dumps(said, ensure_ascii=False, indent=1))
        return
    print(printable(_text(comparisons, correct, found, intervals)))


def read_answers(path: Path, absolute: Sequence[str] | None) -> Answers:
    """Reads ``question``, ``correct`` (true or false) and columns of confidence.

    Raises:
        DataError: a row without one of them, or a question answered twice.
    """
    correct: dict[str, float] = {}
    beside: dict[str, dict[str, float]] = {}
    [path] = as_paths([path], setting="--selective")
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        name = str(fields.identity("question", required=True))
        if name in correct:
            raise fields.error(f"question '{name}' has an answer in an earlier row")
        fields.require("correct")
        correct[name] = float(fields.flag("correct"))
        wanted = absolute if absolute else [of for of in ("confidence",) if of in record.fields]
        for of in wanted:
            if absolute:
                fields.require(of)
            beside.setdefault(of, {})[name] = fields.number(of)
    return Answers(correct, beside)


def _column(path: Path, questions: Sequence[str], name: str, of: dict[str, float]) -> np.ndarray:
    found = np.array([of.get(question, np.nan) for question in questions])
    if np.isnan(found).any():
        raise DataError(
            f"{path} has no {name} of '{questions[int(np.isnan(found).argmax())]}': add it, or leave it out"
        )
    return found


def _text(
    comparisons: Comparisons, correct: np.ndarray, found: dict[str, float], intervals: dict[str, tuple[float, float]]
) -> str:
    def interval(name: str) -> str:
        return "" if name not in intervals else "{:+.3f} to {:+.3f}".format(*intervals[name])

    rows = [[name, f"{auc:.3f}", interval(name)] for name, auc in found.items()]
    first = next(iter(found))
    for other in list(found)[1:]:
        name = f"{first} - {other}"
        rows.append([name, f"{found[first] - found[other]:+.3f}", interval(name)])
    head = (
        f"{counted(len(comparisons), 'comparison')} of {counted(len(correct), 'question')}, "
        f"{correct.mean():.3f} of them answered right (a score that knows nothing has that AUC)"
    )
    return f"{head}\n\n{format_table(['confidence', 'AUC', 'interval'], rows)}"
