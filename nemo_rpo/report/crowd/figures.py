"""The figure of the page on a crowd."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_rpo.crowd.by_annotator import AnnotatorQuality
from nemo_rpo.report.rendering.plots import BLUE, GREY, ORANGE, RED, drawing, short

_EACH = 40  # annotators up to which each is drawn
_ENDS = 20  # of more, those at each end of the table
_WIDTH = 7.0  # inches
_LOOK = {"retrain": (RED, "D"), "watch": (ORANGE, "s"), "too few labels to say": (GREY, "o"), "trust": (BLUE, "o")}


def left_out(rows: Sequence[AnnotatorQuality]) -> int:
    """Annotators with a reliability whom the figure has no room for."""
    known = sum(row.reliability is not None for row in rows)
    return max(0, known - 2 * _ENDS) if known > _EACH else 0


def intervals_figure(rows: Sequence[AnnotatorQuality], good_enough: float) -> str:
    """Reliability with its interval, one line an annotator in the order of the table; of many those at both ends."""
    known = [row for row in rows if row.reliability is not None]
    shown = known if len(known) <= _EACH else [*known[:_ENDS], *known[-_ENDS:]]
    place = np.arange(len(shown))
    with drawing(_WIDTH, 1.2 + 0.24 * len(shown)) as (_, axes, drawn):
        for verdict, (colour, marker) in _LOOK.items():
            mine = [i for i, row in enumerate(shown) if row.verdict == verdict]
            if mine:
                of = [shown[i] for i in mine]
                axes.hlines(place[mine], [r.low for r in of], [r.high for r in of], color=colour, linewidth=1.6)
                axes.plot([r.reliability for r in of], place[mine], marker, color=colour, markersize=5, label=verdict)
        axes.axvline(good_enough, color="black", linewidth=0.9, linestyle="--")
        axes.set_yticks(place, [f"{short(row.annotator)} ({row.labels:,})" for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(max(0.0, min((row.low for row in shown), default=0.0) - 0.05), 1)
        axes.set_xlabel("reliability")
        axes.legend(loc="lower left", fontsize=8)
    return drawn[0]
