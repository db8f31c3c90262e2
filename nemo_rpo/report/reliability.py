"""What a report says of annotators and labels."""

from __future__ import annotations

import numpy as np

from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.report.advice import of_annotators
from nemo_rpo.report.look_back import drift_blocks, side_by_side
from nemo_rpo.report.rendering import plots
from nemo_rpo.report.rendering.document import Block, Figure, Section, Table, Text
from nemo_rpo.report.run import Annotators, Run
from nemo_rpo.shares import logit_interval

_SHOWN = 25
_CROWD = 40

Groups = tuple[list[str], np.ndarray]


def annotators_section(run: Run) -> Section:
    """Reliabilities with their intervals, the least reliable first, and the way they went."""
    annotators = run.annotators
    count = len(annotators)
    text = (
        "The least reliable first. An interval that reaches across .5 leaves open whether the annotator helps or harms."
    )
    if np.isnan(annotators.standard_error).all():
        text += (
            " There are no intervals, because nothing has been fitted: reliabilities are running means. Train with "
            "model.rpo.sweep=end, or with model.rpo.estimator=buffer, to get them."
        )
    blocks: list[Block] = [
        Text(text),
        Figure("annotators", plots.annotator_intervals(annotators), "Reliability of each annotator with its interval."),
    ]
    if count > _CROWD:
        alt = "Histogram of the reliabilities, and reliability against the number of labels."
        blocks.append(Figure("crowd", plots.crowd(annotators), alt))
    blocks.append(_table(run))
    if len(annotators.steps):
        caption = "A closing sweep may move η at once: it sees all labels, a running mean the last ones."
        alt = "Reliability of annotators over the optimizer steps."
        blocks.append(Figure("trajectories", plots.trajectories(annotators), alt, caption))
    return Section("Annotators", [*blocks, *drift_blocks(run.label_model.get("drift", {}))])


def _table(run: Run) -> Table:
    annotators, labels = run.annotators, run.labels
    low, high = logit_interval(annotators.eta, annotators.standard_error)
    size = len(annotators) + 1
    distrusted = np.bincount(labels.annotator, weights=labels.distrusted, minlength=size)
    verdicts = of_annotators(run)
    rows = [
        [
            annotators.id[k],
            f"{annotators.labels[k]:,}",
            f"{annotators.eta[k]:.3f}",
            _interval(low[k], high[k]),
            f"{int(distrusted[k]):,}",
            verdicts[k][0],
        ]
        for k in annotators.ranked.tolist()
    ]
    header = ["annotator", "labels", "η", "95 % interval", "labels distrusted", "verdict"]
    rules = CrowdSettings()
    caption = (
        f"Reliability of each annotator. Trust: the whole interval lies above {rules.good_enough:g}. Retrain: all of "
        f"it lies below. Watch: it holds {rules.good_enough:g}. Too few labels to say: fewer than {rules.min_labels}, "
        f"or an interval around {rules.good_enough:g} that is wider than {rules.widest:g}."
    )
    return Table(header, rows, caption, _SHOWN)


def _interval(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"{low:.3f}–{high:.3f}"


def labels_section(run: Run, groups: Groups) -> Section:
    """Posteriors of all labels, and by group of annotators."""
    labels, (names, group_of) = run.labels, groups
    seen = ~np.isnan(labels.w_last)
    known = seen & (labels.annotator < len(run.annotators))
    group = np.full(len(labels), -1)
    group[known] = group_of[labels.annotator[known]]
    rows = []
    for g, name in enumerate(names):
        mine = group == g
        if mine.any():
            rows.append(_group_row(name, run.annotators, group_of == g, labels.w_last[mine]))
    rows.append(_group_row("all", run.annotators, np.ones(len(run.annotators), bool), labels.w_last[seen]))
    header = ["annotators", "number", "labels", "mean η", "expected wrong", "distrusted"]
    text = (
        "How likely each label is to be right. What stands near 1 is believed, what stands near 0 is believed to be "
        "the wrong way round, and what lies between counts little in the training either way."
    )
    blocks: list[Block] = [
        Text(text),
        Figure("posteriors", plots.posteriors(labels), "Histogram of the posteriors at first and at last sight."),
        Table(header, rows, "Labels by group of annotators; a label is distrusted where w < .5."),
    ]
    blocks += side_by_side(run)
    if not seen.all():
        blocks.insert(1, Text(f"{(~seen).sum():,} labels were never seen in the training and are left out."))
    return Section("Labels", blocks)


def _group_row(name: str, annotators: Annotators, members: np.ndarray, w: np.ndarray) -> list[str]:
    weights = annotators.labels[members]
    mean = np.average(annotators.eta[members], weights=weights) if weights.sum() else annotators.eta[members].mean()
    return [
        name, f"{members.sum():,}", f"{len(w):,}", f"{mean:.3f}", f"{1 - w.mean():.1%}", f"{(w < 0.5).mean():.1%}"
    ]  # fmt: skip
