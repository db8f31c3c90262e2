"""The label model fitted to a table of votes. Shapes: v votes, n pairs, K annotators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.crowd.both_ways import labelled_both_ways, words
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.em.guards import Warned
from nemo_rpo.em.label_model import FlatVotes, LabelModelFit, VoteColumns, fit_label_model, vote_features
from nemo_rpo.em.label_model.drift import fit_drift
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.errors import DataError, printable
from nemo_rpo.threads import one_thread


@dataclass(frozen=True)
class CrowdFit:
    """Votes, and what the label model makes of them.

    Attributes:
        table: the votes, pairs in an order that does not depend on what was said of them.
        model: the fit, of the annotators that are ``present``.
        w: float64 [n], probability that a pair's first response is better.
        right: float64 [v], probability that each vote is right; NaN of a tie.
        eta, low, high: float64 [K], reliability and its 95 % interval; NaN of annotators without a signed label.
        skill_error: float64 [K], standard error of logit eta.
        present: int64, the annotators of ``model`` by their places in the table; those beyond K are further unnamed
            votes on one pair.
    """

    table: VoteTable
    model: LabelModelFit
    w: np.ndarray
    right: np.ndarray
    eta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    skill_error: np.ndarray
    present: np.ndarray

    @property
    def warnings(self) -> list[Warned]:
        """Of the label model, families named by their annotators' ids; most serious first."""
        return [Warned(guard, self._named(text)) for guard, text in self.model.warnings]

    def families_found(self) -> list[list[str]]:
        """Groups of annotators whose errors hang together, by id."""
        ids = self.table.annotators.ids
        places = [self.present[group] for group in self.model.families]
        return [[ids[k] for k in place if k < len(ids)] for place in places]

    def _named(self, text: str) -> str:
        for group, names in zip(self.model.families, self.families_found(), strict=True):
            listed = ", ".join(printable(name, cell=True) for name in names[:8]) + (
                f" and {len(names) - 8} more" if len(names) > 8 else ""
            )
            text = text.replace(str(group), f"[{listed}]")
        return text


def fit_crowd(
    table: VoteTable, settings: LabelModelSettings | None = None, margin: np.ndarray | None = None
) -> CrowdFit:
    """Fits the label model to all signed votes of a table, with every feature that the table has.

    Args:
        margin: float64 [n], log-odds that the first response of each pair of ``table`` is better, known from elsewhere
            than its own labels; None: nothing is known.

    Raises:
        DataError: no vote prefers either response.
    """
    read, table = table, table.neutral()
    if margin is not None:
        margin = np.where(read.content_turned != table.content_turned, -margin, margin)
    if not (table.sign != 0).any():
        raise DataError("no vote prefers either response: there are only ties, which say nothing about anybody")
    annotators = len(table.annotators)
    _check_something_is_left(table)
    # Annotators who gave no signed vote here are not part of the fit.
    votes, present = _flat(table)
    voices, families = len(present), _families(table, present)
    columns = _columns(table)
    gold = torch.from_numpy(table.gold.copy()) if table.gold.any() else None
    with one_thread():
        features = vote_features(votes, columns, settings)
        known = None if margin is None else torch.from_numpy(margin)
        model = fit_label_model(votes, voices, features, gold=gold, families=families, margin=known, settings=settings)
    w = model.w.numpy()
    labelled = table.labels(signed=True) > 0
    named = present < annotators
    of_all = np.full((4, annotators), np.nan)
    fitted = (model.eta, model.eta_interval[:, 0], model.eta_interval[:, 1], model.skill_error)
    of_all[:, present[named]] = np.stack([values.numpy() for values in fitted])[:, named]
    eta, low, high, error = np.where(labelled, of_all, np.nan)
    chosen = w[table.pair]
    right = np.where(table.sign > 0, chosen, 1 - chosen)
    return CrowdFit(table, model, w, np.where(table.sign == 0, np.nan, right), eta, low, high, error, present)


def _check_something_is_left(table: VoteTable) -> None:
    """Raises where all labels are of annotators who said both of their pairs."""
    voice, signed = _voices(table), table.sign != 0
    _, place = np.unique(table.pair[signed] * (int(voice.max()) + 1) + voice[signed], return_inverse=True)
    said = np.bincount(place, weights=table.sign[signed] > 0) / np.bincount(place)
    if not ((said == 0) | (said == 1)).any():
        both = labelled_both_ways(table)
        who = f": {words(table, both)}" if both.any() else ", in the two orders that they were shown in"
        raise DataError(f"every pair was labelled both ways by the same annotator{who}; such labels say nothing")


def drift_of(fit: CrowdFit) -> dict[str, Any]:
    """Who changed over the own sequence of labels (:meth:`nemo_rpo.em.label_model.drift.Drift.to_dict`); empty where
    the votes have no times.
    """
    if not fit.table.knows("time"):
        return {}
    votes, present = _flat(fit.table)
    with one_thread():
        features = vote_features(votes, _columns(fit.table), LabelModelSettings())
        drift = fit_drift(votes, len(present), features, fit.model)
    ids = fit.table.annotators.ids
    return {} if drift is None else drift.to_dict([ids[k] if k < len(ids) else "unnamed" for k in present])


def _flat(table: VoteTable) -> tuple[FlatVotes, np.ndarray]:
    """The votes, and who gave them, by their places in the table."""
    present, voice = np.unique(_voices(table), return_inverse=True)
    of_votes = (torch.from_numpy(of) for of in (table.pair, voice, table.sign))
    return FlatVotes(*of_votes, table.pairs, _weight(table)), present


def _columns(table: VoteTable) -> VoteColumns:
    return VoteColumns(
        **{name: _known(table, name) for name in ("shown_first", "strength", "confidence", "seconds", "time")},
        lengths=torch.from_numpy(table.lengths.copy()),
        topic=torch.from_numpy(table.topic) if table.topics else None,
        topic_names=table.topics,
    )


def _voices(table: VoteTable) -> np.ndarray:
    """Who speaks in each vote, int64 [v]: unnamed votes on one pair are of several people, though they share an id."""
    voice = table.annotator.copy()
    unnamed = np.flatnonzero(table.unnamed & (table.sign != 0))
    if not len(unnamed):
        return voice
    order = unnamed[np.argsort(table.pair[unnamed], kind="stable")]
    pair = table.pair[order]
    begins = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]])
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    later = rank > 0
    voice[order[later]] = len(table.annotators) + rank[later] - 1
    return voice


def _weight(table: VoteTable) -> Tensor | None:
    if (table.weight == 1).all():
        return None
    count = np.bincount(table.pair, minlength=table.pairs)
    mean = np.bincount(table.pair, weights=table.weight, minlength=table.pairs) / np.maximum(count, 1)
    return torch.from_numpy(np.where(count > 0, mean, 1.0).astype(np.float32))


def _families(table: VoteTable, present: np.ndarray) -> Tensor | None:
    if not (table.family >= 0).any():
        return None
    families = np.full(max(len(table.family), int(present.max()) + 1), -1, dtype=np.int64)
    families[: len(table.family)] = table.family
    return torch.from_numpy(families[present])


def _known(table: VoteTable, name: str) -> Tensor | None:
    return torch.from_numpy(table.detail(name).copy()) if table.knows(name) else None
