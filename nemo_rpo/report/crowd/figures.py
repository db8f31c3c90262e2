"""The figure of the page on a crowd."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_rpo.crowd.by_annotator import AnnotatorQuality
from nemo_rpo.report.rendering.plots import BLUE, GREY, ORANGE, RED, drawing, short

_EACH = 40  # annotators up to which each is drawn
_ENDS = 20  # of more, those at each end of the table
_LOOK = {"retrain": (RED, "D"), "watch": (ORANGE, "s"), "too few labels to say": (GREY, "o"), "trust": (BLUE, "o")}


def intervals_figure(rows: Sequence[AnnotatorQuality], good_enough: float) -> str:
    """Reliability with its interval, one line an annotator in the order of the table; of many those at both ends."""
    known = [row for row in rows if row.reliability is not None]
    shown = known if len(known) <= _EACH else [*known[:_ENDS], *known[-_ENDS:]]
    place = np.arange(len(shown))
    with drawing(7.0, 1.1 + 0.26 * len(shown)) as (_, axes, drawn):
        for verdict, (colour, marker) in _LOOK.items():
            mine = [i for i, row in enumerate(shown) if row.verdict == verdict]
            if mine:
                of = [shown[i] for i in mine]
                axes.hlines(place[mine], [r.low for r in of], [r.high for r in of], color=colour, linewidth=1.6)
                axes.plot([r.reliability for r in of], place[mine], marker, color=colour, markersize=5, label=verdict)
        axes.axvline(good_enough, color="black", linewidth=0.9, linestyle="--")
        axes.set_yticks(place, [f"{short(row.annotator)} ({row.labels:,})" for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("reliability (line: 95 % interval; dashed: what is asked)")
        axes.legend(loc="lower left")
        if len(known) > _EACH:
            axes.set_title(f"{len(known) - 2 * _ENDS:,} annotators between are in the table")
    return drawn[0]
