"""What a report says of groups of taste, where the run had a reward for each. Shapes: K annotators, G groups."""

from __future__ import annotations

import numpy as np

from nemo_rpo.report.rendering.document import Block, Note, Section, Table, Text
from nemo_rpo.report.run import Run
from nemo_rpo.shares import share

_SURE = 0.9  # of an annotator's group
_FEW_SURE = 0.5
_SMALL = 0.1
_SHOWN = 25


def sections(run: Run) -> list[Section]:
    """The section of a run with groups, in a list; an empty one for a run with one truth for all."""
    groups = run.annotators.weight.shape[1]
    if groups < 2:
        return []
    weight, labels = run.annotators.weight, run.annotators.labels
    known = labels > 0
    blocks: list[Block] = [
        Text(
            f"The reward model has {groups} outputs, one for each group of annotators, and an annotator's weights say "
            "how likely they are to belong to each. A label is judged by the truth of its annotator's group. Nothing "
            "tells a group whose truth is the opposite of another's on every pair from one that errs on purpose."
        ),
        *_notes(weight[known]),
        _group_table(run),
        _agreement_table(run),
        _weight_table(run),
    ]
    return [Section("Groups of taste", blocks)]


def _notes(weight: np.ndarray) -> list[Note]:
    found, groups = [], weight.shape[1]
    sure = (weight.max(1) > _SURE).mean() if len(weight) else 0.0
    if sure < _FEW_SURE:
        found.append(
            Note(
                "Most annotators belong to no group for certain",
                f"Only {sure:.0%} of them have a weight above {_SURE} on one group, so the groups may be one.",
                "Compare with a run of one group (loss_options.groups=1) on held-out labels; it takes ten labels or "
                "more of an annotator to tell.",
            )
        )
    sizes = weight.mean(0) if len(weight) else np.zeros(groups)
    for g in np.flatnonzero(sizes < _SMALL):
        found.append(
            Note(
                f"Group {g + 1} is nearly empty",
                f"{sizes[g]:.1%} of the annotators belong to it: the others explain these labels as well.",
                f"Train with loss_options.groups={groups - 1}.",
            )
        )
    return found


def _group_table(run: Run) -> Table:
    weight, labels, eta = run.annotators.weight, run.annotators.labels, run.annotators.eta
    rows = []
    for g in range(weight.shape[1]):
        of_labels = weight[:, g] * labels
        mean = (of_labels * eta).sum() / max(of_labels.sum(), 1e-12)
        members = (weight[:, g] > 0.5) & (labels > 0)
        sure = (weight[:, g] > _SURE) & (labels > 0)
        share_of_labels = of_labels.sum() / max(labels.sum(), 1)
        rows.append(
            [f"group {g + 1}", f"{members.sum():,}", f"{sure.sum():,}", f"{share_of_labels:.1%}", f"{mean:.3f}"]
        )
    header = ["", "annotators", f"of them above {_SURE}", "share of the labels", "mean η"]
    return Table(header, rows, "Size of each group, and how reliable its members are by its own truth.")


def _agreement_table(run: Run) -> Table:
    """On how many pairs two groups prefer the same response."""
    _, first = np.unique(run.labels.pair, return_index=True)
    w = run.labels.w_of_group[first]
    prefers = w[~np.isnan(w).any(1)] > 0.5
    rows = []
    for a in range(prefers.shape[1]):
        for b in range(a + 1, prefers.shape[1]):
            same = share(int((prefers[:, a] == prefers[:, b]).sum()), len(prefers))
            rows.append([f"groups {a + 1} and {b + 1}", f"{same.value:.3f}", f"{same.low:.3f}–{same.high:.3f}"])
    return Table(["", "same response", "95 % interval"], rows, f"Agreement of the groups on {len(prefers):,} pairs.")


def _weight_table(run: Run) -> Table:
    annotators = run.annotators
    order = np.lexsort((-annotators.weight.max(1), annotators.weight.argmax(1)))
    rows = [
        [annotators.id[k], f"{annotators.labels[k]:,}", *(f"{w:.3f}" for w in annotators.weight[k])]
        for k in order.tolist()
    ]
    header = ["annotator", "labels", *(f"group {g + 1}" for g in range(annotators.weight.shape[1]))]
    return Table(header, rows, "Weight of each annotator on the groups, group by group, the surest first.", _SHOWN)
