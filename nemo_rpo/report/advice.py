"""What to do about a run: the first lines of its report. A verdict looks at intervals, never at an estimate alone."""

from __future__ import annotations

import numpy as np

from nemo_rpo.crowd.by_annotator import Verdict, judge
from nemo_rpo.crowd.crowd_settings import CrowdSettings
from nemo_rpo.report.calibration_bins import calibration
from nemo_rpo.report.rendering.document import Note
from nemo_rpo.report.run import Run
from nemo_rpo.shares import Difference, Share, logit_interval, share

_NAMED = 8  # annotators that a sentence names
_NO_LEANING, _NO_DRIFT = share(0, 0), Difference(np.nan, np.nan, np.nan)


def of_annotators(run: Run) -> list[tuple[Verdict, str]]:
    """Verdict and reason of each annotator [K], by the rules of ``nemo-rpo annotators``
    (:class:`nemo_rpo.crowd.crowd_settings.CrowdSettings`); what votes alone would show besides is not looked at.
    """
    annotators, settings = run.annotators, CrowdSettings()
    low, high = logit_interval(annotators.eta, annotators.standard_error)
    found = []
    for k in range(len(annotators)):
        if np.isnan(low[k]):
            found.append(("too few labels to say", "nothing was fitted: no interval"))
        else:
            said = (annotators.eta[k], low[k], high[k], int(annotators.labels[k]))
            found.append(judge(*said, _NO_LEANING, _NO_DRIFT, settings))
    return found


def accuracy_of(run: Run) -> tuple[Share, str] | None:
    """How often the policy prefers the better response, and of which labels: held-out ones, else training labels before
    the policy learnt from them; None where there is neither.
    """
    if run.held_out is not None:
        by = "held-out labels" if (run.held_out.gold == 0).all() else "held-out labels, gold ones where there are any,"
        return calibration(run.held_out.truth * run.held_out.delta).accuracy, by
    if run.labels is None:
        return None
    first = run.labels.sign * run.labels.delta_first
    first = first[~np.isnan(first) & (first != 0)]
    return (calibration(first).accuracy, "training labels that it had not learnt from yet") if len(first) else None


def no_better_than_chance(run: Run) -> Note | None:
    """A warning where the interval of the policy's accuracy reaches down to one half."""
    found = accuracy_of(run)
    if found is None or found[0].low > 0.5:
        return None
    accuracy, of = found
    worse = accuracy.high < 0.5
    text = (
        f"On {accuracy.n:,} {of} it prefers the right response {accuracy.value:.1%} of the time "
        f"({accuracy.low:.1%} to {accuracy.high:.1%}), which is {'less than' if worse else 'what'} a coin would."
    )
    if run.labels is not None:
        text += " What its margins say of labels and annotators is no evidence: only where several labels share a pair "
        text += "do reliabilities and doubtful labels rest on anything."
    advice = (
        "Do not use this policy, and drop or swap no label on its word. See whether the loss has moved at all "
        "(learning rate, steps), start from a stronger model, or estimate annotators from the votes alone: "
        "nemo-rpo annotators."
    )
    return Note(f"The policy is {'worse' if worse else 'no better'} than chance", text, advice)


def verdict(run: Run, beside: Note | None = None) -> list[Note]:
    """What to do, most important first; the first note is the verdict on the run, the second, where there is one, what
    the comparison ``beside`` the plain loss came to.
    """
    notes = [no_better_than_chance(run) or _kept(run, compared=beside is not None)]
    if beside is not None:
        notes.append(beside)
    if run.labels is not None:
        notes += _on_annotators(run)
    return notes


def _kept(run: Run, compared: bool) -> Note:
    found = accuracy_of(run)
    if found is None:
        advice = "Give held-out pairs (model.data.data_prefix.validation), or run nemo-rpo evaluate on some."
        return Note("Whether the policy is any good is not known", "The run has no held-out pairs.", advice)
    accuracy, of = found
    text = (
        f"On {accuracy.n:,} {of} it prefers the right response {accuracy.value:.1%} of the time "
        f"({accuracy.low:.1%} to {accuracy.high:.1%})."
    )
    advice = (
        "See whether it beats the plain loss at the same settings (nemo-rpo train --beside-plain) before you replace "
        "what you use now."
    )
    return Note("The policy can be kept: it is better than chance", text, "" if compared else advice, good=True)


def _on_annotators(run: Run) -> list[Note]:
    verdicts, settings, annotators = of_annotators(run), CrowdSettings(), run.annotators
    low, high = logit_interval(annotators.eta, annotators.standard_error)
    worst_first = annotators.ranked.tolist()
    retrain = [k for k in worst_first if verdicts[k][0] == "retrain"]
    inverted = [k for k in retrain if high[k] < 0.5]
    coins = [k for k in retrain if low[k] <= 0.5 <= high[k]]
    careless = [k for k in retrain if low[k] > 0.5]
    notes = []
    if inverted:
        text = f"{_named(run, inverted)} {_are(inverted)} surely wrong more often than right."
        advice = "Ask whether the instructions were understood, or the buttons mixed up, before anything else."
        notes.append(Note("Labels the wrong way round", text, advice))
    if coins or careless:
        parts = []
        if coins:
            parts.append(f"{_named(run, coins)} {_are(coins)} right about as often as a flipped coin")
        if careless:
            parts.append(
                f"{_named(run, careless)} {_are(careless)} surely right less than {settings.good_enough:.0%} of the "
                "time"
            )
        advice = (
            "Retrain or replace them; what they have labelled is worth labelling again (nemo-rpo export … doubtful)."
        )
        notes.append(Note("Annotators to retrain", "; ".join(parts) + ".", advice))
    few = [k for k, (found, _) in enumerate(verdicts) if found == "too few labels to say" and annotators.labels[k]]
    given = annotators.labels[few].sum() / max(annotators.labels.sum(), 1) if few else 0.0
    if given > 0.5:
        text = (
            f"Of {len(few):,} of {len(annotators):,} annotators, who gave {given:.0%} of the labels, too little is "
            f"known for a verdict: fewer than {settings.min_labels} labels, or an interval wider than "
            f"{settings.widest:g}."
        )
        advice = (
            "Collect more labels, several on one pair first: they say far more of an annotator than as many on pairs "
            "of their own."
        )
        notes.append(Note("Collect more labels", text, advice))
    return notes


def _named(run: Run, members: list[int]) -> str:
    names = [run.annotators.id[k] for k in members[:_NAMED]]
    if len(members) > _NAMED:
        return f"{', '.join(names)} and {len(members) - _NAMED:,} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _are(members: list[int]) -> str:
    return "is" if len(members) == 1 else "are"
