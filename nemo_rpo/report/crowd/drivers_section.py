"""The section on what labels reward, of a crowd's page and of a run's report."""

from __future__ import annotations

import numpy as np

from nemo_rpo.crowd.factors.drivers_text import CAPTION, TITLE, driver_cells, readings
from nemo_rpo.crowd.factors.driving import BELIEVED, DISTRUSTED, Drivers
from nemo_rpo.report.rendering.document import Block, Figure, Section, Table, Text
from nemo_rpo.report.rendering.plots import BLUE, RED, drawing, short

_LOOK = {BELIEVED: (BLUE, "o", -0.14), DISTRUSTED: (RED, "D", 0.14)}


def section_of_drivers(drivers: Drivers) -> Section:
    """A sentence for each finding, the table, the figure, and what could not be fitted."""
    header, rows = driver_cells(drivers)
    blocks: list[Block] = [Text(f"{line[:1].upper()}{line[1:]}.") for line in readings(drivers)]
    if rows:
        caption = "Strength of each property with its 95 % interval, in believed and in distrusted labels."
        alt = "strength of each property in believed and in distrusted labels"
        blocks += [Table(header, rows, CAPTION), Figure("drivers", drivers_figure(drivers), alt, caption)]
    return Section(TITLE, [*blocks, *(Text(f"Left out: {note}.") for note in drivers.notes)])


def drivers_figure(drivers: Drivers) -> str:
    """Strength by property, believed labels beside distrusted ones, as SVG."""
    names = [row[0] for row in driver_cells(drivers)[1]]
    with drawing(7.0, 1.3 + 0.42 * len(names)) as (_, axes, drawn):
        for kind, (colour, marker, shift) in _LOOK.items():
            of = drivers.of(kind)
            if of:
                place = np.arange(len(names)) + shift
                mine = [of[name] for name in names]
                axes.hlines(place, [f.low for f in mine], [f.high for f in mine], color=colour, linewidth=1.6)
                label = f"{kind} ({mine[0].count:,} labels)"
                axes.plot([f.strength for f in mine], place, marker, color=colour, markersize=5, label=label)
        axes.axvline(0, color="black", linewidth=0.9)
        axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("strength: change of log-odds for a typical difference")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize=8)
    return drawn[0]
