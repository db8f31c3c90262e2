"""What a report says of gold labels as judges, and of annotators who changed with time: ``label_model.json``'s part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rpo.report.rendering import plots
from nemo_rpo.report.rendering.document import Block, Figure, Table, Text
from nemo_rpo.report.run import Run


def side_by_side(run: Run) -> list[Block]:
    """Estimates of the truths on gold labels, the best first; nothing for a run without them."""
    judged = run.label_model.get("judged", {})
    if not judged:
        return []
    best = sorted(judged.items(), key=lambda item: -item[1]["right"])
    rows = [
        [name, f"{of['anchors']:,}", f"{of['right']:.1%} ({of['low']:.1%} to {of['high']:.1%})"] for name, of in best
    ]
    caption = (
        "Share of gold labels that each estimate finds. No gold label is evidence where it judges, and the policy's "
        "margins are from before it was trained on their pairs."
    )
    return [Table(["estimate", "gold labels", "found (95 % interval)"], rows, caption)]


def drift_blocks(drift: Mapping[str, Any]) -> list[Block]:
    """Who got better or worse over the own sequence of labels, of a drift as plain data; nothing of an empty one."""
    if not drift.get("annotators"):
        return []
    sure = [of["id"] for of in drift["annotators"] if of["surely"]]
    verdict = f"Annotators change over their own sequence of labels (p = {drift['p_value']:.2g})"
    if not drift["found"]:
        verdict = f"That nobody changes over the own sequence of labels fits as well (p = {drift['p_value']:.2g})"
    named = (
        f"; beyond chance, with all looked at: {', '.join(map(plots.short, sure))}."
        if sure
        else "; nobody beyond chance."
    )
    return [
        Text(verdict + named),
        Figure(
            "drift",
            plots.drift(drift["place"], drift["annotators"]),
            "Probability that a label is right, from an annotator's first label to the last.",
            "Those who change most; red and solid beyond chance. Shades are 95 % intervals of the fitted curve.",
        ),
    ]
