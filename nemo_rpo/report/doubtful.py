"""What a report says of doubtful labels: they themselves, what they have in common, and what may be taste in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_rpo.report.disagreement import Camp, Taste
from nemo_rpo.report.doubt import Leaning, length_leaning, most_doubtful, position_leaning
from nemo_rpo.report.rendering import plots
from nemo_rpo.report.rendering.document import Block, Figure, Note, Quote, Section, Table, Text
from nemo_rpo.report.run import Run
from nemo_rpo.report.texts import Texts

CONTESTED = 5  # pairs quoted on which annotators stand together against the model
_PER_ANNOTATOR = 3
_NAMED = 6
_LARGE = 0.2  # difference of two shares that no longer is a detail


def choose(run: Run, quotes: int) -> np.ndarray:
    """Rows of the labels to quote: at most three of one annotator, and none that is more likely right than wrong."""
    rows = most_doubtful(run.labels, quotes, _PER_ANNOTATOR)
    return rows[run.labels.w_last[rows] < 0.5]


def quotes_section(run: Run, rows: np.ndarray, texts: Texts | None, missing: str) -> Section:
    """The most doubtful labels side by side."""
    section = Section("Most doubtful labels")
    if not len(rows):
        section.blocks = [Text("No label is more likely wrong than right.")]
        return section
    text = (
        f"The {len(rows):,} labels that are least likely to be right, one a pair and at most {_PER_ANNOTATOR} of one "
        "annotator. Read some before acting on any number above: they show what the model has learnt to prefer."
    )
    section.blocks = [Text(text)]
    if texts is None:
        section.blocks += [Text(missing), _plain_table(run, rows)]
    else:
        section.blocks += [_quote(run, n, row, texts) for n, row in enumerate(rows.tolist(), start=1)]
    return section


def _plain_table(run: Run, rows: np.ndarray) -> Table:
    labels = run.labels
    cells = [
        [
            labels.pair_id[row],
            _who(run, row),
            f"{labels.sign[row] * labels.delta_last[row]:+.2f}",
            _small(1 - labels.w_last[row]),
        ]
        for row in rows.tolist()
    ]
    return Table(["pair", "annotator", "Δ for the label", "probability wrong"], cells)


def _quote(run: Run, number: int, row: int, texts: Texts) -> Quote:
    labels, excerpt = run.labels, texts.excerpts[row]
    who = _who(run, row)
    sides = ((f"preferred by {who}", excerpt.preferred), ("the other response", excerpt.other))
    return Quote(f"{number}. Pair {labels.pair_id[row]}", excerpt.prompt, sides, [*_facts(run, row), excerpt.where])


def _facts(run: Run, row: int) -> list[str]:
    labels = run.labels
    delta = labels.sign[row] * labels.delta_last[row]
    facts = [
        f"the model gives the preferred response {_small(np.exp(-np.logaddexp(0, -delta)))} (Δ {delta:+.2f})",
        f"probability that the label is wrong: {_small(1 - labels.w_last[row])}",
    ]
    others = np.flatnonzero((labels.pair == labels.pair[row]) & (np.arange(len(labels)) != row))
    if len(others):
        same = others[labels.sign[others] == labels.sign[row]]
        opposed = others[labels.sign[others] != labels.sign[row]]
        facts.append(f"other labels of the pair: {_names(run, same)} the same, {_names(run, opposed)} the opposite")
    return facts


def _who(run: Run, row: int) -> str:
    annotator = int(run.labels.annotator[row])
    if annotator >= len(run.annotators):
        return "somebody without a name"
    return f"{run.annotators.id[annotator]} (η {run.annotators.eta[annotator]:.2f})"


def _names(run: Run, rows: np.ndarray) -> str:
    if not len(rows):
        return "none"
    names = [_who(run, row) for row in rows[:_NAMED].tolist()]
    return f"{len(rows)} – " + ", ".join(names) + (", …" if len(rows) > _NAMED else "") + " –"


def _small(p: float) -> str:
    return f"{p:.3f}" if 0.001 <= p <= 0.999 else "under .001" if p < 0.001 else "over .999"


def length_note(run: Run) -> Note | None:
    """A warning where what the EM distrusts is largely a matter of length."""
    leaning = length_leaning(run.labels)
    if not leaning.gap.clear or abs(leaning.gap.value) < _LARGE:
        return None
    text = (
        f"Distrusted labels prefer the longer response {leaning.distrusted.value:.0%} of the time, believed ones "
        f"{leaning.believed.value:.0%}. If the policy has learnt to go by length, so has the EM, and whoever does not "
        "is rated unreliable."
    )
    advice = (
        "Read the quotes below before you drop or swap any label. If it is the policy, take a loss that does not pay "
        "for length (model.dpo.preference_average_log_probs, simpo), and have some doubtful labels looked at again."
    )
    return Note("Distrust goes with length", text, advice)


def leanings_section(run: Run, texts: Texts | None) -> Section:
    """Length and position bias of the distrusted labels."""
    found = [length_leaning(run.labels)]
    position = position_leaning(run.labels, texts.prefers_first) if texts else None
    if position is None and not (found[0].distrusted.n or found[0].believed.n):
        return Section("Length and position", [Text("The labels are of completions judged alone, which have neither.")])
    found += [position] if position else []
    rows = [[f"prefers {x.name}", f"{x.distrusted.n:,}", str(x.distrusted), str(x.believed), str(x.gap)] for x in found]
    header = ["", "distrusted labels", "share of those", "share of believed ones", "difference"]
    blocks: list[Block] = [
        Figure("leanings", plots.leanings(found), "Share of labels that prefer the longer and the first response."),
        Table(header, rows, "Shares and difference with 95 % intervals."),
        *(Text(_verdict(leaning)) for leaning in found),
    ]
    if position is None:
        blocks.append(Text("The data does not say which response was shown first, so position bias cannot be judged."))
    return Section("Length and position", blocks)


def _verdict(leaning: Leaning) -> str:
    if not leaning.gap.clear:
        return f"Distrusted and believed labels prefer {leaning.name} about equally often: no bias is visible."
    more = leaning.gap.value > 0
    return (
        f"Distrusted labels prefer {leaning.name} {'more' if more else 'less'} often than believed ones. Either these "
        f"annotators {'chase' if more else 'avoid'} it, or the policy has learnt to {'avoid' if more else 'chase'} it: "
        "the quotes above tell which. If it is the policy, the distrust is the policy's bias and not the annotators'."
    )


def taste_section(run: Run, found: Taste, texts: Texts | None) -> Section:
    """Camps, and pairs on which people agree with each other but not with the model."""
    intro = (
        "Errors are scattered; taste is shared. Annotators who contradict the model and still agree with each other "
        "more than independent errors would let them are not noisy: they want something else, and swapping their "
        "labels would erase a group's view."
    )
    blocks: list[Block] = [Text(intro)]
    if not found.comparable:
        blocks.append(
            Text(
                "No two annotators have labelled enough pairs in common to compare them, so taste cannot be told from "
                "noise here. Give some pairs to several annotators to find out."
            )
        )
    elif not found.camps:
        blocks.append(
            Text(f"Among {found.comparable:,} pairs of annotators with enough labels in common there is no such group.")
        )
    else:
        rows = [_camp_row(run, camp) for camp in found.camps]
        header = ["annotators", "agree with each other", "errors would", "shared pairs", "agree with the model"]
        blocks.append(Table(header, rows, "Groups that look like taste."))
    if len(found.contested):
        blocks.append(
            Text(
                f"On {len(found.contested):,} pairs three or more annotators agree (four in five of them at least) and "
                "the model is confident of the opposite. The people are right, or the model is: these are worth a look."
            )
        )
        if texts:
            quoted = found.contested[:CONTESTED].tolist()
            blocks += [_quote(run, n, row, texts) for n, row in enumerate(quoted, start=1) if row in texts.excerpts]
    return Section("Taste rather than noise", blocks)


def _camp_row(run: Run, camp: Camp) -> Sequence[str]:
    names = ", ".join(run.annotators.id[k] for k in camp.members[:_NAMED])
    more = f" and {len(camp.members) - _NAMED:,} more" if len(camp.members) > _NAMED else ""
    figures = (f"{camp.agreement:.1%}", f"{camp.expected:.1%}", f"{camp.shared:,}", f"{camp.with_model:.1%}")
    return [names + more, *figures]
