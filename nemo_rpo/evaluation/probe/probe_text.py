"""A probe as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_rpo.evaluation.probe.probing import Probe
from nemo_rpo.evaluation.probe.word_pairs import WordPreference
from nemo_rpo.text_table import format_table

TITLE = "What the frozen model knows of these preferences"


def layer_cells(probe: Probe) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a layer each."""
    header = ["layer", "held-out accuracy", "95 %", "nats over a coin", ""]
    rows = [
        [
            str(score.layer),
            f"{score.accuracy:.3f}",
            f"{score.low:.3f}–{score.high:.3f}",
            f"{score.gain:+.1f}",
            "best" if score is probe.best else "",
        ]
        for score in probe.layers
    ]
    return header, rows


def verdict(probe: Probe) -> str:
    """Whether the margins count beside the votes."""
    if probe.believed:
        return f"margins of layer {probe.best.layer} count beside the votes, times {probe.best.scale:.2f}"
    return f"no layer says more than a coin of pairs that it was not fitted to ({probe.best.gain:+.1f} nats): left out"


def as_text(probe: Probe) -> str:
    """A table on a terminal, and whether the margins count."""
    return f"{TITLE}\n{format_table(*layer_cells(probe))}\n{verdict(probe)}"


def word_cells(words: Sequence[WordPreference]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, a group each."""
    header = ["words", "pairs", "log-odds of the first", "95 %", "prefers first"]
    rows = [
        [w.name, str(w.pairs), f"{w.log_odds:+.3f}", f"{w.low:+.3f} to {w.high:+.3f}", f"{w.prefers_first:.2f}"]
        for w in words
    ]
    return header, rows


def words_text(words: Sequence[WordPreference]) -> str:
    """A table on a terminal."""
    return "What the probe prefers of two words\n" + format_table(*word_cells(words))
