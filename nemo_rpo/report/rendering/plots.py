"""The figures of a report, drawn with matplotlib into SVG text. Colours are Okabe and Ito's, which colour-blind readers
tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nemo_rpo.errors import missing_extra, printable
from nemo_rpo.report.calibration_bins import Calibration
from nemo_rpo.report.doubt import Leaning
from nemo_rpo.report.run import Annotators, Labels
from nemo_rpo.shares import logit_interval

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#767676"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56b4e9", "#000000", GREY)
STYLES = ("-", "--", "-.", ":")
_EACH = 40  # annotators up to which each is drawn
_ENDS = 15  # of more, those at each end
_LINES = 12  # annotators up to which each has a line of its own
_MARKED = 5  # of more, the least reliable ones
_ENOUGH = 10  # labels, below which an annotator's way is that of the prior
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

_STYLE = {
    "svg.fonttype": "none",  # letters as text: smaller, and found by a search
    "svg.hashsalt": "nemo-rpo",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # an id may hold dollar signs
}


@contextlib.contextmanager
def drawing(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple]:
    """A figure of that size in inches, its axes, and a list that its SVG is put into at the end."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise missing_extra("matplotlib", "report") from exc
    drawn: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure((width, height))
        yield figure, figure.subplots(rows, columns, **options), drawn
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    # The declaration and document type of a file of its own have no place inside a page, nor has the link they hold.
    # XML has no place for control characters, not even escaped; ids may have them.
    svg = _NOT_XML.sub("\ufffd", out.getvalue())
    drawn.append(re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL).strip())


def _plain_ticks(axis: Any) -> None:
    """Numbers as they are, at the powers of ten of a logarithmic axis: matplotlib's own are mathematics to be set."""
    axis.set_major_formatter(lambda value, place: f"{value:,.15g}")
    axis.set_minor_formatter(lambda value, place: "")


def annotator_intervals(annotators: Annotators) -> str:
    """η of each annotator with its 95 % interval, the least reliable at the top; of many only those at both ends."""
    ranked = annotators.ranked
    many = len(ranked) > _EACH
    shown = np.concatenate((ranked[:_ENDS], ranked[-_ENDS:])) if many else ranked
    place = np.arange(len(shown)) + np.where(np.arange(len(shown)) >= _ENDS, 1.5, 0) * many
    low, high = logit_interval(annotators.eta[shown], annotators.standard_error[shown])
    eta = annotators.eta[shown]
    with drawing(8.2, 1.0 + 0.22 * (len(shown) + 1.5 * many)) as (_, axes, drawn):
        known = ~np.isnan(low)
        axes.hlines(place[known], low[known], high[known], color=GREY, linewidth=1.6)
        below = eta < 0.5
        axes.plot(eta[~below], place[~below], "o", color=BLUE, markersize=5, label="right more often than wrong")
        axes.plot(eta[below], place[below], "D", color=RED, markersize=5, label="wrong more often than right")
        axes.axvline(0.5, color="black", linewidth=0.9)
        if np.ptp(starts := annotators.eta_start) == 0:
            axes.axvline(starts[0], color=GREY, linewidth=0.9, linestyle=":")
            axes.annotate(
                f"start {starts[0]:g}", (starts[0], 1), xycoords=("data", "axes fraction"),
                xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8, color=GREY,
            )  # fmt: skip
        else:
            axes.plot(starts[shown], place, "|", color=GREY, markersize=7, label="start")
        names = [f"{short(annotators.id[k])}  ({annotators.labels[k]:,})" for k in shown]
        axes.set_yticks(place, names, fontsize=8)
        axes.set_ylim(place[-1] + 0.8, -0.8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("reliability η: probability that a label is right (line: 95 % interval)")
        axes.set_ylabel("annotator (labels)")
        if many:
            axes.text(0.02, _ENDS + 0.25, f"… {len(ranked) - 2 * _ENDS:,} between", fontsize=8, color=GREY, va="center")
    return drawn[0]


def crowd(annotators: Annotators) -> str:
    """How a crowd's reliabilities are spread, and against the number of labels that they stand on."""
    with drawing(8.2, 3.1, columns=2) as (_, (left, right), drawn):
        left.hist(annotators.eta, bins=np.linspace(0, 1, 41), color=BLUE)
        left.set_xlabel("reliability η")
        left.set_ylabel("annotators")
        left.axvline(0.5, color="black", linewidth=0.9)
        right.plot(
            annotators.labels.clip(1), annotators.eta, "o", color=BLUE, markersize=2.5, alpha=0.35, rasterized=True
        )
        right.set_xscale("log")
        _plain_ticks(right.xaxis)
        right.xaxis.set_major_formatter("{x:,.0f}")
        right.xaxis.set_minor_formatter("")
        right.set_xlabel("labels given (logarithmic)")
        right.set_ylabel("reliability η")
        right.set_ylim(0, 1)
        right.axhline(0.5, color="black", linewidth=0.9)
    return drawn[0]


def trajectories(annotators: Annotators) -> str:
    """η over the steps: a line each, or of many the spread of all and the lines of the least reliable."""
    steps, way, k = annotators.steps, annotators.way, len(annotators)
    if k <= _LINES:
        marked = annotators.ranked
    else:
        marked = np.array([i for i in annotators.ranked if annotators.labels[i] >= _ENOUGH][:_MARKED], np.int64)
    with drawing(8.2, 3.6) as (_, axes, drawn):
        if k > _LINES:
            low, quarter, middle, three, high = np.nanpercentile(way, (5, 25, 50, 75, 95), axis=0)
            axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0, label="5th to 95th percentile")
            axes.fill_between(steps, quarter, three, color=BLUE, alpha=0.3, linewidth=0, label="25th to 75th")
            axes.plot(steps, middle, color=BLUE, linewidth=1.6, label="median")
        for place, i in enumerate(marked.tolist()):
            colour, style = COLOURS[(place + (k > _LINES)) % len(COLOURS)], STYLES[place // len(COLOURS) % 4]
            axes.plot(steps, way[i], color=colour, linestyle=style, linewidth=1.4, label=short(annotators.id[i]))
        axes.axhline(0.5, color="black", linewidth=0.9)
        axes.set_ylim(0, 1)
        axes.set_xlim(0, steps[-1])
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("reliability η")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return drawn[0]


def drift(place: Sequence[float], annotators: Sequence[dict[str, Any]]) -> str:
    """P(label right) over an annotator's own sequence of labels: a panel each, with its 95 % interval."""
    columns = min(4, len(annotators))
    rows = -(-len(annotators) // columns)
    options = {"sharex": True, "sharey": True, "squeeze": False}
    with drawing(2.1 * columns, 0.6 + 1.7 * rows, rows=rows, columns=columns, **options) as (figure, panels, drawn):
        for axes, of in zip(panels.flat, annotators, strict=False):
            colour = RED if of["surely"] else BLUE
            axes.fill_between(place, of["low"], of["high"], color=colour, alpha=0.2, linewidth=0)
            axes.plot(place, of["curve"], color=colour, linewidth=1.6, linestyle="-" if of["surely"] else "--")
            axes.axhline(0.5, color="black", linewidth=0.9)
            axes.set_title(short(of["id"]), fontsize=8)
            axes.set_ylim(0, 1)
            axes.set_xlim(0, 1)
            axes.set_xticks((0, 1), ("first", "last"))
        for axes in panels.flat[len(annotators) :]:
            axes.set_visible(False)
        figure.supxlabel("label, in the annotator's own order", fontsize=9)
        figure.supylabel("P(label right)", fontsize=9)
    return drawn[0]


def posteriors(labels: Labels) -> str:
    """How many labels the EM gives each probability of being right, at first and at last sight."""
    bins = np.linspace(0, 1, 21)
    first, last = (values[~np.isnan(values)] for values in (labels.w_first, labels.w_last))
    with drawing(8.2, 3.1) as (_, axes, drawn):
        axes.hist(last, bins=bins, color=BLUE, label="at last sight", log=True)
        axes.hist(first, bins=bins, histtype="step", color=ORANGE, linewidth=1.8, label="at first sight", log=True)
        axes.axvline(0.5, color="black", linewidth=0.9)
        axes.set_xlim(0, 1)
        axes.set_xlabel("w: probability that the label is right (below .5: the EM believes the opposite)")
        axes.set_ylabel("labels (logarithmic)")
        _plain_ticks(axes.yaxis)
        axes.legend(loc="upper left")
    return drawn[0]


def course(train: Sequence[dict], val: Sequence[dict]) -> str:
    """Loss and accuracy over the run, the training's smoothed over a twentieth of it."""
    steps = np.array([row["step"] for row in train])
    width = max(1, len(train) // 20)
    with drawing(8.2, 3.0, columns=2) as (_, both, drawn):
        for axes, name, label in zip(both, ("loss", "acc"), ("loss (nats)", "pairs won"), strict=True):
            values = _figures(train, name)
            axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.7)
            axes.plot(steps, _smooth(values, width), color=BLUE, linewidth=1.6, label="training")
            if val:
                held_out = [row["step"] for row in val], _figures(val, name)
                axes.plot(*held_out, "D-", color=RED, markersize=4, linewidth=1, label="validation")
            axes.set_xlabel("optimizer step")
            axes.set_ylabel(label)
        both[1].set_ylim(0, 1)
        both[0].legend()
    return drawn[0]


def _figures(rows: Sequence[dict], name: str) -> np.ndarray:
    """One figure of each row, float64; NaN where a row has no number of that name."""
    values = (row.get(name) for row in rows)
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], dtype=np.float64)


def reliability_diagram(found: Calibration) -> str:
    """Confidence against accuracy with 95 % intervals, above the number of labels of each confidence."""
    x = np.array([b.confidence for b in found.bins])
    y = np.array([b.right.value for b in found.bins])
    low, high = (np.array([getattr(b.right, end) for b in found.bins]) for end in ("low", "high"))
    options = {"sharex": True, "gridspec_kw": {"height_ratios": (3, 1)}}
    with drawing(5.4, 4.6, rows=2, **options) as (_, (axes, counts), drawn):
        axes.plot((0.5, 1), (0.5, 1), color="black", linewidth=0.9, label="sure as it should be")
        lengths = (y - low).clip(0), (high - y).clip(0)  # rounding may put a limit of 0 or 1 on the wrong side
        axes.errorbar(x, y, lengths, fmt="o", color=BLUE, ecolor=GREY, capsize=2.5, label="policy")
        axes.set_ylim(min(0.45, low.min() - 0.03), 1.02)
        axes.set_ylabel("right (95 % interval)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)  # above: no point is there
        counts.bar([b.low for b in found.bins], [b.right.n for b in found.bins], 0.05, align="edge", color=BLUE)
        counts.set_ylabel("labels")
        counts.set_xlim(0.5, 1)
        counts.set_xlabel("confidence max(p, 1 - p), p = σ(Δ)")
    return drawn[0]


def leanings(found: Sequence[Leaning]) -> str:
    """What distrusted and believed labels prefer, with 95 % intervals."""
    with drawing(8.2, 0.9 + 0.55 * len(found)) as (_, axes, drawn):
        for row, leaning in enumerate(found):
            for offset, share, colour, marker in (
                (-0.14, leaning.distrusted, RED, "D"), (0.14, leaning.believed, BLUE, "o")
            ):  # fmt: skip
                label = ("distrusted labels", "believed labels")[offset > 0] if row == 0 else None
                axes.plot((share.low, share.high), [row + offset] * 2, color=GREY, linewidth=1.6)
                axes.plot(share.value, row + offset, marker, color=colour, markersize=5.5, label=label)
        axes.axvline(0.5, color="black", linewidth=0.9)
        axes.set_yticks(range(len(found)), [leaning.name for leaning in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of labels that prefer it (line: 95 % interval)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn[0]


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    known = np.convolve(~np.isnan(values), np.ones(width), "same")
    return np.convolve(np.nan_to_num(values), np.ones(width), "same") / np.maximum(known, 1)


def short(name: str) -> str:
    """An id as a tick of an axis has room for it."""
    name = printable(name, cell=True)
    return name if len(name) <= 24 else name[:23] + "…"
