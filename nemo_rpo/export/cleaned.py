"""The training data without what the run believes to be wrong: dropped, swapped, or weighted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from nemo_rpo.conversion.layouts import records_of
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.rows import Vote
from nemo_rpo.errors import ConfigError
from nemo_rpo.export.beliefs import belief_columns
from nemo_rpo.export.relabelled import Relabelled
from nemo_rpo.report.run import Run
from nemo_rpo.report.source import Source, SourcePair

Wrong = Literal["drop", "swap", "weigh", "keep"]
LAYOUTS = ("hf", "nemo_rl", "nemo_aligner", "votes", "unpaired")


@dataclass(frozen=True)
class ExportSettings:
    """How a cleaned data set is made.

    Attributes:
        to: its layout.
        wrong: what becomes of labels that are believed to be wrong. ``drop``: they are left out; ``swap``: they are
            turned round; ``weigh``: all stay, and each gets a ``weight``, the probability that it is right; ``keep``:
            all stay as they are (for relabelled rows alone).
        threshold: a label is believed to be wrong where the probability that it is right is below this.
        win_rates: add what is believed of each pair as columns (:func:`nemo_rpo.export.beliefs.belief_columns`).
    """

    to: str = "hf"
    wrong: Wrong = "drop"
    threshold: float = 0.5
    win_rates: bool = False

    def check(self) -> None:
        """Raises :class:`ConfigError` for a value that there is none of."""
        if self.to not in LAYOUTS:
            raise ConfigError(f"--to is '{self.to}'; it can be {', '.join(LAYOUTS)}")
        if self.wrong not in get_args(Wrong):
            raise ConfigError(f"--wrong is '{self.wrong}'; it can be {', '.join(get_args(Wrong))}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold must be a probability, got {self.threshold}")


@dataclass
class Cleaning:
    """What was done: rows written, labels by what became of them, pairs left out."""

    written: int = 0
    done: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)


def write_cleaned(
    run: Run,
    source: Source,
    out: Path,
    settings: ExportSettings,
    relabelled: Relabelled | None = None,
    overwrite: bool = False,
) -> Cleaning:
    """Writes the pairs of ``source`` that the run was trained on; see :func:`nemo_rpo.data.files.write.record_writer`.

    A relabelled label takes the place of the one it is about, under the name of who gave it, and with weight 1.
    Ties stay where the layout has a place for them; so do labels that the run has not seen.

    Raises:
        ConfigError: settings, or an ``out`` that cannot be written. DataError: the data is not the run's.
    """
    settings.check()
    found, answers = Cleaning(), relabelled.votes if relabelled else {}
    believed = belief_columns(run, source) if settings.win_rates else {}
    with record_writer(out, overwrite) as write:
        for pair in source:
            if not len(pair.labels):
                found.lost["pairs that the run was not trained on"] += 1
                continue
            votes, weights = _judged(run, pair, settings, answers, found.done)
            if not any(vote.sign for vote in votes):
                found.lost["pairs without a label left"] += 1
                continue
            columns = {**pair.merged.columns, **believed.get(pair.key, {})}
            pair = replace(pair, merged=replace(pair.merged, columns=columns))
            for fields in _rows(pair, votes, weights, settings, found.lost):
                write(fields)
                found.written += 1
    return found


def _judged(
    run: Run, pair: SourcePair, settings: ExportSettings, answers: dict[int, Vote], done: Counter[str]
) -> tuple[list[Vote], list[float | None]]:
    """The labels of a pair as they are to be written, and the weight of each; None for a tie, or where unknown."""
    votes: list[Vote] = []
    weights: list[float | None] = []
    rows = iter(pair.labels.tolist())
    for vote in pair.merged.votes:
        if not vote.sign:
            votes.append(vote)
            weights.append(None)
            continue
        row = next(rows)
        w = float(run.labels.w_last[row])
        what, new = _verdict(vote, w, settings) if row not in answers else ("relabelled", answers[row])
        done[what] += 1
        if new is not None:
            votes.append(new)
            weights.append(1.0 if row in answers else None if np.isnan(w) else round(w, 6))
    return votes, weights


def _verdict(vote: Vote, w: float, settings: ExportSettings) -> tuple[str, Vote | None]:
    if np.isnan(w):
        return "never seen, kept", vote
    if settings.wrong == "weigh":
        return "weighted", vote
    if w >= settings.threshold or settings.wrong == "keep":
        return "kept", vote
    return ("dropped", None) if settings.wrong == "drop" else ("swapped", vote._replace(sign=-vote.sign))


def _rows(
    pair: SourcePair, votes: list[Vote], weights: list[float | None], settings: ExportSettings, lost: Counter[str]
) -> Iterator[dict[str, Any]]:
    written = records_of(replace(pair.merged, votes=votes), settings.to, lost)
    if settings.wrong != "weigh":
        yield from written
        return
    if settings.to == "votes":
        for fields in written:
            fields["votes"] = [
                cast if weight is None else {**cast, "weight": weight}
                for cast, weight in zip(fields["votes"], weights, strict=True)
            ]
            yield fields
        return
    # A row a label, and of the winner layouts a row a signed one.
    ties = settings.to == "nemo_rl"
    of_labels = [weight for vote, weight in zip(votes, weights, strict=True) if vote.sign or ties]
    rows_of_label = 2 if settings.to == "unpaired" and not pair.merged.alone else 1  # a good completion and a bad one
    of_rows = [weight for weight in of_labels for _ in range(rows_of_label)]
    for fields, weight in zip(written, of_rows, strict=True):
        yield fields if weight is None else {**fields, "weight": weight}
