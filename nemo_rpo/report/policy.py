"""What a report says of the policy: its course, how often it is right, and whether it is as sure as it is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_rpo.report.calibration_bins import calibration
from nemo_rpo.report.reliability import Groups
from nemo_rpo.report.rendering import plots
from nemo_rpo.report.rendering.document import Block, Figure, Section, Table, Text
from nemo_rpo.report.run import Run
from nemo_rpo.shares import Share, share


def section(run: Run, groups: Groups | None) -> Section:
    """Course, accuracy, calibration."""
    train, val = run.rows("train"), _validation_rows(run)
    blocks: list[Block] = []
    if len(train) > 1:
        alt = "Loss and accuracy of training and validation over the steps."
        caption = "Bold: mean over a twentieth of the run. A training pair is won where chosen gained on rejected."
        blocks.append(Figure("course", plots.course(train, val), alt, caption))
    blocks.append(_accuracy_table(run, groups))
    blocks += _calibration(run)
    return Section("Policy", blocks)


def _validation_rows(run: Run) -> list[dict[str, Any]]:
    """Those of the one validation set, or of the first named one."""
    splits = [row["split"] for row in run.metrics if row["split"].split("/")[0] == "val"]
    return run.rows(splits[0]) if splits else []


def in_short(run: Run) -> list[str]:
    """One sentence on the held-out pairs, if there are any."""
    if run.held_out is None:
        return []
    found = calibration(run.held_out.truth * run.held_out.delta)
    return [
        f"On {found.n:,} held-out labels the policy prefers the right response {_percent(found.accuracy)} of the time; "
        f"its expected calibration error is {found.ece:.3f}."
    ]


def _percent(found: Share) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _accuracy_table(run: Run, groups: Groups | None) -> Table:
    header = ["labels", "number", "policy agrees (95 % interval)"]
    rows: list[list[str]] = []
    held_out = run.held_out
    if held_out is not None:
        margin = held_out.truth * held_out.delta
        by = "gold or recorded labels" if (held_out.gold != 0).any() else "recorded labels"
        rows.append(_row(f"held out, {by}", margin))
        names = np.unique(held_out.set)
        if len(names) > 1:
            rows += [_row(f"held out, set {name}", margin[held_out.set == name]) for name in names]
        if groups is not None:
            rows += _by_group("held out", margin, held_out.annotator, groups)
    if run.labels is not None and groups is not None:
        labels = run.labels
        for sight, delta in (("first", labels.delta_first), ("last", labels.delta_last)):
            # At first sight of the first step the policy is its reference, and every margin 0.
            known = ~np.isnan(delta) & (delta != 0)
            margin = (labels.sign * delta)[known]
            rows.append(_row(f"training, {sight} sight", margin))
            rows += _by_group(f"training, {sight} sight", margin, labels.annotator[known], groups)
    caption = (
        "How often the policy prefers the response that a label prefers. At first sight it has not learnt from the "
        "pair yet; at last sight it has."
    )
    return Table(header, rows, caption)


def _by_group(what: str, margin: np.ndarray, annotator: np.ndarray, groups: Groups) -> list[list[str]]:
    names, group_of = groups
    known = annotator < len(group_of)
    group = np.where(known, np.append(group_of, 0)[annotator.clip(max=len(group_of))], -1)
    found = [_row(f"{what}: {name}", margin[group == g]) for g, name in enumerate(names) if (group == g).any()]
    return found if len(found) > 1 or (known.any() and not known.all()) else []


def _row(name: str, margin: np.ndarray) -> list[str]:
    right = float((margin > 0).sum() + 0.5 * (margin == 0).sum())
    return [name, f"{len(margin):,}", str(share(right, len(margin)))]


def _calibration(run: Run) -> list[Block]:
    if run.held_out is not None:
        margin, of = run.held_out.truth * run.held_out.delta, "held-out labels, at the weights of the end"
    elif run.labels is not None:
        first = run.labels.sign * run.labels.delta_first
        margin = first[~np.isnan(first) & (first != 0)]
        of = "training labels at first sight (there is no held-out record)"
    else:
        return [Text("There are no held-out margins to judge calibration by.")]
    if not len(margin):
        return [Text("There are no margins to judge calibration by.")]
    found = calibration(margin)
    caption = (
        f"Of {found.n:,} {of}: ECE {found.ece:.3f}, Brier score {found.brier:.3f} (¼ says nothing), log loss "
        f"{found.log_loss:.3f} (ln 2 = .693 says nothing). Below the line the policy is surer than it is right. Where "
        "the labels themselves are noisy, the best policy stays below it."
    )
    alt = "How often the policy is right, by how sure it is."
    return [Figure("calibration", plots.reliability_diagram(found), alt, caption, small=True)]
