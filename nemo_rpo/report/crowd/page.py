"""The page of ``nemo-rpo annotators --html``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from nemo_rpo.counting import counted
from nemo_rpo.crowd.crowd_fit import drift_of
from nemo_rpo.crowd.crowd_settings import RULES, CrowdSettings
from nemo_rpo.crowd.reliability import Reliability
from nemo_rpo.crowd.wording import annotator_cells, doubtful_cells, estimate_lines, headline
from nemo_rpo.report.crowd.figures import intervals_figure, left_out
from nemo_rpo.report.look_back import drift_blocks
from nemo_rpo.report.rendering.document import Block, Document, Figure, Note, Section, Table, Text

_ADVICE = {
    "shared_errors": "give 20 to 80 pairs their gold label (--gold), and ask annotators who do not share a cause",
    "dependent_errors": "name families of annotators (field family), or give some pairs their gold label",
    "order_not_random": "show the responses in random order",
    "nobody_heard": "have pairs labelled by two annotators, or give some their gold label (--gold)",
    "upside_down": "give some pairs their gold label (--gold)",
    "anchors_disagree": "use the estimate that the gold labels favour",
}


def crowd_page(
    result: Reliability, settings: CrowdSettings, files: Sequence[str], further: Sequence[Section] = ()
) -> Document:
    """Warnings first, then annotators with a figure, doubtful labels, ``further`` sections, and what speaks for the
    estimates.
    """
    verdicts = [(verdict, f"{count:,}") for verdict, count in result.verdicts().items()]
    facts = [("files", ", ".join(files)), ("votes", headline(result).splitlines()[0]), *verdicts]
    sections = [
        Section("What to look at first", _warnings(result)),
        Section("Annotators", _annotators(result, settings)),
        Section("Doubtful labels", _doubtful(result)),
        *further,
        Section("How the labels were judged", [Text(line) for line in estimate_lines(result)]),
    ]
    return Document("Annotators", facts, sections)


def _warnings(result: Reliability) -> list[Block]:
    if result.warnings:
        return [Note(_title(w.kind), w.text, _ADVICE.get(w.kind, "")) for w in result.warnings]
    retrain = result.verdicts().get("retrain", 0)
    if retrain:
        many = f"{counted(retrain, 'annotator')} {'is' if retrain == 1 else 'are'}"
        return [Text(f"{many} surely below what is asked; the table below begins with them.")]
    return [Text("Nobody is surely careless, and annotators err independently as far as the votes show.")]


def _title(kind: str) -> str:
    return kind.replace("_", " ").capitalize()


def _annotators(result: Reliability, settings: CrowdSettings) -> list[Block]:
    header, rows = annotator_cells(result)
    # What to do stands beside the name: a phone shows the first columns only.
    order = [0, len(header) - 2, *range(1, len(header) - 2), len(header) - 1]
    header, rows = [header[i] for i in order], [[row[i] for i in order] for row in rows]
    caption = "Those to retrain first. Reliability is the probability that a label is right, with its 95 % interval."
    between = left_out(result.annotators)
    figure = Figure(
        "reliability",
        intervals_figure(result.annotators, settings.good_enough),
        "reliability of each annotator with its 95 % interval",
        "Lines are 95 % intervals, the dashed line is what is asked; in brackets the labels."
        + (f" Left out: {counted(between, 'annotator')} in the middle." if between else ""),
    )
    drift = drift_blocks(drift_of(result.fit))
    return [Table(header, rows, caption), figure, Text(RULES.format(**asdict(settings))), *drift]


def _doubtful(result: Reliability) -> list[Block]:
    if not result.doubtful:
        return [Text("No label is more likely wrong than right.")]
    header, rows = doubtful_cells(result)
    return [Table(header, rows, "Labels that are more likely wrong than right; others: labels for it and against it.")]
