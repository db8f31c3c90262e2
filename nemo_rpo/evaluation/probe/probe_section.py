"""The section on a probe of a crowd's page."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_rpo.evaluation.probe.probe_text import TITLE, layer_cells, verdict, word_cells
from nemo_rpo.evaluation.probe.probing import Probe
from nemo_rpo.evaluation.probe.word_pairs import WordPreference
from nemo_rpo.report.rendering.document import Block, Figure, Section, Table, Text
from nemo_rpo.report.rendering.plots import BLUE, drawing


def section_of_probe(probe: Probe, words: Sequence[WordPreference] = ()) -> Section:
    """The verdict, accuracy by layer as a table and a figure, and words where they were asked."""
    caption = "A linear probe at each layer, on pairs of prompts that it was not fitted to; lines are 95 % intervals."
    blocks: list[Block] = [
        Text(f"{verdict(probe)[:1].upper()}{verdict(probe)[1:]}."),
        Table(*layer_cells(probe), caption),
        Figure("probe", layers_figure(probe), "held-out accuracy of a probe at each layer", caption, small=True),
    ]
    if words:
        blocks.append(Table(*word_cells(words), "What the probe of the best layer prefers of two words."))
    return Section(TITLE, blocks)


def layers_figure(probe: Probe) -> str:
    """Accuracy by layer with its interval, as SVG."""
    layer = [score.layer for score in probe.layers]
    with drawing(5.2, 3.0) as (_, axes, drawn):
        axes.vlines(layer, [s.low for s in probe.layers], [s.high for s in probe.layers], color=BLUE, linewidth=1.6)
        axes.plot(layer, [s.accuracy for s in probe.layers], "o-", color=BLUE, markersize=5)
        axes.axhline(0.5, color="black", linewidth=0.9, linestyle="--")
        axes.set_xticks(layer)
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_ylabel("held-out accuracy")
    return drawn[0]
