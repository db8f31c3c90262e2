"""One line an annotator: reliability, agreement, habits, and what to do about him. Shapes: v votes, K annotators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.crowd.crowd_fit import CrowdFit
from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.shares import Difference, Share, difference, share

Verdict = Literal["trust", "watch", "retrain", "too few labels to say"]


@dataclass(frozen=True)
class AnnotatorQuality:
    """What votes say of one annotator; ``None`` where they say nothing.

    Attributes:
        annotator: id.
        labels, ties: signed labels, and ties called.
        reliability, low, high: probability that a label is right, with its 95 % interval.
        agreement: share of labels that are those of most others on the pair; ``compared`` labels have such others.
        compared: see there.
        says_first, says_first_low, says_first_high: share of labels for the response that was shown first, with its
            95 % interval; of labels whose order is known.
        drift, drift_low, drift_high: probability right in the later half of the labels less the earlier half, by their
            times, with its 95 % interval.
        seconds: median time spent on a label.
        repeats, repeats_same: labels on a pair labelled before, and those of them that say the same.
        family: as declared.
        verdict, reason: what to do, and why in a few words.
    """

    annotator: str
    labels: int
    ties: int
    reliability: float | None
    low: float | None
    high: float | None
    agreement: float | None
    compared: int
    says_first: float | None
    says_first_low: float | None
    says_first_high: float | None
    drift: float | None
    drift_low: float | None
    drift_high: float | None
    seconds: float | None
    repeats: int
    repeats_same: int
    family: str | None
    verdict: Verdict
    reason: str


def annotator_qualities(fit: CrowdFit, settings: CrowdSettings | None = None) -> list[AnnotatorQuality]:
    """The annotators, by verdict (retrain first) and then by reliability, the least first."""
    settings = settings or CrowdSettings()
    table = fit.table
    labels, all_votes = table.labels(signed=True), table.labels(signed=False)
    agreed, compared = agreement_with_others(table)
    first, ordered = _says_first(table)
    drift, seconds = _drift(fit), _median_by(table.annotator, table.detail("seconds"), len(table.annotators))
    repeats, same = _repeats(table)
    # Too many labels for one side are a habit only where the truth is on either side equally often.
    balanced = fit.model.order is None or fit.model.order.random
    rows = []
    for k, name in enumerate(table.annotators.ids):
        leaning = share(float(first[k]), int(ordered[k]))
        habit = leaning if balanced else share(0, 0)
        verdict, reason = judge(fit.eta[k], fit.low[k], fit.high[k], int(labels[k]), habit, drift[k], settings)
        if verdict == "too few labels to say" and labels[k] >= settings.min_labels and fit.warnings:
            reason += "; see the warnings"  # which may be why, however many labels there are
        rows.append(
            AnnotatorQuality(
                annotator=name,
                labels=int(labels[k]),
                ties=int(all_votes[k] - labels[k]),
                **_numbers(reliability=fit.eta[k], low=fit.low[k], high=fit.high[k]),
                **_numbers(agreement=agreed[k] / compared[k] if compared[k] else np.nan),
                compared=int(compared[k]),
                **_numbers(says_first=leaning.value, says_first_low=leaning.low, says_first_high=leaning.high),
                **_numbers(drift=drift[k].value, drift_low=drift[k].low, drift_high=drift[k].high),
                **_numbers(seconds=seconds[k]),
                repeats=int(repeats[k]),
                repeats_same=int(same[k]),
                family=table.families[table.family[k]] if table.family[k] >= 0 else None,
                verdict=verdict,
                reason=reason,
            )
        )
    order = {"retrain": 0, "watch": 1, "too few labels to say": 2, "trust": 3}
    return sorted(rows, key=lambda row: (order[row.verdict], np.inf if row.low is None else row.reliability))


def judge(
    eta: float, low: float, high: float, labels: int, leaning: Share, drift: Difference, settings: CrowdSettings
) -> tuple[Verdict, str]:
    """The verdict and its reason, by the rules of :class:`CrowdSettings`."""
    s = settings
    if labels < s.min_labels or np.isnan(eta):
        return "too few labels to say", counted(labels, "signed label")
    if high < s.good_enough:
        return "retrain", "wrong more often than right" if high < 0.5 else f"surely below {s.good_enough:g}"
    habits = [text for text in (_leans(leaning, s), _gets_worse(drift, s)) if text]
    if habits:
        return "watch", "; ".join(habits)
    if low > s.good_enough:
        return "trust", f"surely above {s.good_enough:g}"
    if high - low > s.widest:
        return "too few labels to say", f"the interval is {high - low:.2f} wide"
    return "watch", f"may be below {s.good_enough:g}"


def _leans(leaning: Share, settings: CrowdSettings) -> str:
    if not leaning.n:
        return ""
    # Wilson's interval is for 1.96 standard errors; leaning is looked for in everybody.
    middle, half = (leaning.low + leaning.high) / 2, (leaning.high - leaning.low) / 2 * settings.errors / 1.96
    for sign, which in ((1, "first"), (-1, "second")):
        if sign * (middle - 0.5) - half > 0 and sign * (leaning.value - 0.5) > settings.leaning - 0.5:
            return f"{abs(leaning.value - 0.5) + 0.5:.0%} of labels say {which}"
    return ""


def _gets_worse(drift: Difference, settings: CrowdSettings) -> str:
    if np.isnan(drift.value):
        return ""
    error = (drift.high - drift.low) / 2 / 1.96
    surely = drift.value + settings.errors * error < 0 and drift.value < -settings.drift
    return f"right {-drift.value:.2f} less often in the later half" if surely else ""


def agreement_with_others(table: VoteTable) -> tuple[np.ndarray, np.ndarray]:
    """Of each annotator's signed labels, those that are as most of the others' on the pair, and those that have others
    with a majority; int64 [K] each.
    """
    signed = table.sign != 0
    pair, annotator, sign = table.pair[signed], table.annotator[signed], table.sign[signed].astype(np.int64)
    total = np.bincount(pair, weights=sign, minlength=table.pairs)
    _, of = np.unique(pair * len(table.annotators) + annotator, return_inverse=True)
    own = np.bincount(of, weights=sign)[of]  # all that this annotator says of the pair, should he say it twice
    own = np.where(table.unnamed[signed], sign, own)
    others = total[pair] - own
    known = others != 0
    size = len(table.annotators)
    agreed = np.bincount(annotator[known & (sign * others > 0)], minlength=size)
    return agreed, np.bincount(annotator[known], minlength=size)


def _says_first(table: VoteTable) -> tuple[np.ndarray, np.ndarray]:
    """Signed labels of each annotator for the response shown first, and those whose order is known, int64 [K] each."""
    shown_first = table.detail("shown_first")
    known = (table.sign != 0) & (shown_first != 0)
    first = known & (table.sign == shown_first)
    size = len(table.annotators)
    return np.bincount(table.annotator[first], minlength=size), np.bincount(table.annotator[known], minlength=size)


def _drift(fit: CrowdFit) -> list[Difference]:
    """Mean probability right of the later half of each annotator's labels less that of the earlier half."""
    table = fit.table
    time = table.detail("time")
    known = np.flatnonzero((table.sign != 0) & ~np.isnan(time))
    order = known[np.lexsort((time[known], table.annotator[known]))]
    ends = np.cumsum(np.bincount(table.annotator[order], minlength=len(table.annotators)))
    nothing = Difference(np.nan, np.nan, np.nan)
    found = []
    for mine in np.split(order, ends[:-1]):
        half = len(mine) // 2
        if half < 2:
            found.append(nothing)
            continue
        earlier, later = fit.right[mine[:half]], fit.right[mine[half:]]
        found.append(difference(share(float(later.sum()), len(later)), share(float(earlier.sum()), len(earlier))))
    return found


def _repeats(table: VoteTable) -> tuple[np.ndarray, np.ndarray]:
    """Votes of an annotator on a pair voted on before, and those that say the same as the first; int64 [K] each."""
    order = np.lexsort((np.arange(len(table)), table.annotator, table.pair))
    order = order[~table.unnamed[order]]
    pair, annotator = table.pair[order], table.annotator[order]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (pair[1:] == pair[:-1]) & (annotator[1:] == annotator[:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order)))) if len(order) else np.arange(0)
    same = again & (table.sign[order] == table.sign[order][first])
    size = len(table.annotators)
    return np.bincount(annotator[again], minlength=size), np.bincount(annotator[same], minlength=size)


def _median_by(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    medians = np.full(groups, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.lexsort((values[known], group[known]))]
    count = np.bincount(group[order], minlength=groups)
    start, some = np.cumsum(count) - count, count > 0
    low, high = (start + (count - 1) // 2)[some], (start + count // 2)[some]
    medians[some] = (values[order[low]].astype(np.float64) + values[order[high]]) / 2
    return medians


def _numbers(**values: float) -> dict[str, Any]:
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
