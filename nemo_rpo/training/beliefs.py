"""What an earlier run, or votes alone, have found of the annotators: where a run's own reliabilities begin."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.data.files.formulas import without_quote
from nemo_rpo.em.belief import Belief, answers_behind
from nemo_rpo.errors import ConfigError
from nemo_rpo.training.outputs.results import ANNOTATOR_CSV

_KEY = "model.rpo.believe_from"
_95 = 1.959964  # standard errors on either side that an interval of 95 % reaches


class Found(NamedTuple):
    """Of one annotator: reliability, its standard error (nan: not known), and the labels it rests on."""

    eta: float
    standard_error: float
    labels: float


@dataclass(frozen=True)
class Beliefs:
    """The annotators of one file, by id."""

    path: Path
    found: Mapping[str, Found]

    def about(self, annotators: AnnotatorTable, rpo: RPOConfig) -> Belief:
        """The start of each of the ``annotators`` of a run, and what stands behind it; those who are not in the file
        start at ``rpo.eta_init`` and bring nothing.
        """
        columns = zip(*self.found.values(), strict=True)  # all of them: they tell what is to be expected of anybody
        eta, error, labels = (torch.tensor(column, dtype=torch.float64) for column in columns)
        known = rpo.carry * answers_behind(eta, error, labels, rpo.prior)
        place = {name: k for k, name in enumerate(self.found)}
        here = torch.tensor([place.get(name, -1) for name in annotators.ids])
        nothing = Belief.none(len(here), rpo.eta_init)
        lower, upper = rpo.eta_bounds
        return Belief(
            torch.where(here >= 0, eta[here].clamp(lower, upper), nothing.start),
            torch.where(here >= 0, known[:, here], nothing.known),
            torch.where(here >= 0, error[here], nothing.standard_error),
        )

    def summary(self, annotators: AnnotatorTable, rpo: RPOConfig) -> str:
        """For the log: whom the file knows, and how much of it counts."""
        known = sum(name in self.found for name in annotators.ids)
        answers = self.about(annotators, rpo).known.sum().item()
        frozen = ", and stay as they are" if rpo.freeze_eta else ""
        return f"{known:,} of {len(annotators):,} as in {self.path}, worth {answers:,.0f} known answers{frozen}"

    def fingerprint(self) -> str:
        """Of what is believed, wherever the file is."""
        rows = "\n".join(f"{name}\t{of!r}" for name, of in sorted(self.found.items()))
        return hashlib.sha256(rows.encode()).hexdigest()


def read_beliefs(believe_from: str | None) -> Beliefs | None:
    """The annotators of a run's folder, of its ``annotators.csv``, or of the file that ``nemo-rpo annotators --csv``
    writes; None without a path.

    A reliability with an interval and no standard error has that of the interval's width. Annotators without a
    reliability are left out.

    Raises:
        ConfigError: no such file, or not one of annotators.
    """
    if believe_from is None:
        return None
    path = Path(believe_from)
    path = path / ANNOTATOR_CSV if path.is_dir() else path
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise ConfigError(
            f"{_KEY}={believe_from}: {path} cannot be read ({exc}); name a run's folder, or a file of annotators"
        ) from exc
    found: dict[str, Found] = {}
    for number, row in enumerate(rows, start=2):
        try:
            name, of = _found(row)
        except (KeyError, ValueError, TypeError) as exc:
            raise ConfigError(
                f"{_KEY}: {path}:{number} is no line of annotators ({exc}); it takes the columns id, labels, eta, "
                "standard_error, or annotator, labels, reliability, low, high"
            ) from exc
        if name in found:
            raise ConfigError(f"{_KEY}: {path}:{number} has annotator '{name}' a second time")
        if of is not None:
            found[name] = of
    if not found:
        raise ConfigError(f"{_KEY}: {path} knows the reliability of nobody")
    return Beliefs(path, found)


def _found(row: Mapping[str, str]) -> tuple[str, Found | None]:
    name = row["id"] if "id" in row else without_quote(row["annotator"])
    said = row["eta"] if "eta" in row else row["reliability"]
    if said == "":
        return name, None
    eta, labels = float(said), float(row["labels"]) + float(row.get("carried") or 0)
    if not 0 <= eta <= 1 or not labels >= 0:
        raise ValueError(f"reliability {said}, labels {row['labels']}")
    if "standard_error" in row:
        error = float(row["standard_error"] or "nan")
    else:
        error = (float(row["high"] or "nan") - float(row["low"] or "nan")) / (2 * _95)
    return name, Found(eta, error, labels)
