"""What drives the labels, as a person reads it."""

from __future__ import annotations

from nemo_rpo.counting import counted
from nemo_rpo.crowd.factors.driving import ALL, BELIEVED, DISTRUSTED, Drivers, Factor
from nemo_rpo.text_table import format_table

TITLE = "What the labels reward"
CAPTION = (
    "Strength: the change of the log-odds of being preferred for a typical difference in the property, all others held "
    "equal, with its 95 % interval; labels of one prompt hang together, or with few prompts those of one pair. An "
    "interval that leaves out 0 is marked *. prefer more: the share of labels for the answer with more of it."
)


def as_text(drivers: Drivers) -> str:
    """A table on a terminal."""
    parts = [TITLE]
    header, rows = driver_cells(drivers)
    if rows:
        parts.append(format_table(header, rows))
    return "\n".join([*parts, *(f"reading: {line}" for line in readings(drivers)), *drivers.notes])


def driver_cells(drivers: Drivers) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row a property, the one that drives believed labels most first."""
    kinds = [kind for kind in (ALL, BELIEVED, DISTRUSTED) if drivers.of(kind)]
    if not kinds:
        return ["property"], []
    by_kind = {kind: drivers.of(kind) for kind in kinds}
    lead = by_kind.get(BELIEVED) or by_kind[kinds[0]]
    counts = {kind: next(iter(of.values())).count for kind, of in by_kind.items()}
    header = ["property"]
    for kind in kinds:
        header += [f"{kind} ({counts[kind]:,})", "prefer more"]
    rows = []
    for name in sorted(lead, key=lambda name: -abs(lead[name].strength)):
        row = [name]
        for kind in kinds:
            row += [_strength(by_kind[kind][name]), f"{by_kind[kind][name].prefers_more:.2f}"]
        rows.append(row)
    return header, rows


def readings(drivers: Drivers) -> list[str]:
    """A sentence for each property that clearly drives the distrusted labels."""
    believed, said = drivers.of(BELIEVED), []
    for name, factor in drivers.of(DISTRUSTED).items():
        if not factor.clear:
            continue
        more = "more" if factor.strength > 0 else "less"
        other = believed.get(name)
        if other is None or not other.clear:
            said.append(f"distrusted labels reward {more} {name}, and believed ones do not care: it misleads")
        elif (other.strength > 0) == (factor.strength > 0):
            said.append(f"both believed and distrusted labels reward {more} {name}: a taste of all, or a shared error")
        else:
            said.append(f"distrusted labels reward {more} {name} where believed ones reward the opposite")
    return said or [f"no property clearly drives the distrusted labels ({counted(len(drivers.of(ALL)), 'property')})"]


def _strength(factor: Factor) -> str:
    return f"{factor.strength:+.2f} ({factor.low:+.2f} to {factor.high:+.2f}){'*' if factor.clear else ''}"
