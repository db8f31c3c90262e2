"""The guards' warnings, with what to do about each."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from nemo_rpo.em import Votes, evidence_of, warn_all
from nemo_rpo.em.fit.temperature import Temperature
from nemo_rpo.em.guards import Agreed
from nemo_rpo.report.run import Labels, Run

_ADVICE = {
    "policy_at_chance": (
        "The policy is no better than chance",
        "Do not deploy it, nor read its opinion of labels. Lower the learning rate, train on more pairs or start from "
        "a stronger model; what the votes alone say of labels and annotators needs no policy.",
    ),
    "policy_without_voice": (
        "The policy had no say in the estimates",
        "Read reliabilities and doubtful labels as what the votes alone say; with one label a pair that is little. How "
        "good the policy is now, held-out labels tell.",
    ),
    "lone_annotator_at_floor": (
        "Labels without ids seem to be right half of the time",
        "Look at a few dozen of them yourself. If they are right, the policy has learnt the opposite: start from a "
        "policy that is better than chance, or give some gold labels. If they are noise, there is nothing to learn.",
    ),
    "memorised_margins": (
        "The policy remembers the labels that it was trained on",
        "Its agreement with them is no evidence. Use margins from before the training on a pair "
        "(model.rpo.estimator=buffer, model.rpo.sweep=none) or fewer epochs.",
    ),
    "lone_annotator_below_half": (
        "The only annotator seems to be wrong more often than right",
        "Label a few dozen of these pairs again yourself: if the annotator is right on those, the policy has learnt "
        "the opposite of the truth. Start from a policy that is better than chance, lower the learning rate, or add a "
        "second annotator.",
    ),
    "flipped_population": (
        "Most labels come from annotators rated below one half",
        "Do not swap labels on this evidence. Look at the doubtful labels below: where they look right to you, all "
        "reliabilities are upside down. Fewer epochs, a lower learning rate, or some warm-up (model.rpo.warmup_steps) "
        "keep the policy from fitting the wrong side first.",
    ),
    "stuck_at_start": (
        "Many reliabilities are what they were set to, not estimates",
        "Ask for a sweep at the end (model.rpo.sweep=end) or for model.rpo.estimator=buffer, and see that the votes of "
        "one pair share a pair_id (model.data.group_votes=true): several labels a pair say far more than margins do.",
    ),
    "overconfident_margins": (
        "The policy agrees with its own labels too well to find errors in them",
        "It has been trained on these labels and remembers them. Use margins from before the training on a pair "
        "(model.rpo.estimator=buffer with margins: prequential), fewer epochs, or a larger model.rpo.link_tau.",
    ),
    "certain_annotators": (
        "Nearly everybody is rated as nearly perfect",
        "Compare with a few labels that you know. If they are not that clean, see the advice on over-confident "
        "margins: fewer epochs, prequential margins, a stronger prior (model.rpo.prior).",
    ),
    "saturated_posteriors": (
        "The posteriors decide, they no longer weigh",
        "Raise model.rpo.link_tau until a good part of the posteriors lies between .05 and .95; read the order of the "
        "doubtful labels, and not their probabilities.",
    ),
}


class Warning(NamedTuple):
    """A warning: what it is called, what the guard found, what to do."""

    title: str
    finding: str
    advice: str


def warnings_of(run: Run) -> list[Warning]:
    """Most serious first; none for a run without the EM."""
    if run.labels is None:
        return []
    eta, counts = torch.from_numpy(run.annotators.eta), torch.from_numpy(run.annotators.labels.astype(np.float64))
    delta, votes = _margins_and_votes(run.labels, len(run.annotators))
    evidence = evidence_of(delta, votes, run.cfg.model.rpo) if len(delta) else None
    errors = torch.from_numpy(run.annotators.standard_error)
    starts = run.annotators.eta_start
    start = torch.from_numpy(starts) if run.cfg.model.rpo.believe_from else float(starts[0])
    found = warn_all(eta, counts, start, evidence, errors, _temperature(run), _held_out(run))
    if run.cfg.model.rpo.freeze_eta:
        found = [warned for warned in found if warned.guard != "stuck_at_start"]
    return [Warning(_ADVICE[guard][0], text, _ADVICE[guard][1]) for guard, text in found]


def _temperature(run: Run) -> Temperature | None:
    """That of the last refit, as the run logged it; None where there was none."""
    refits = [row for row in run.metrics if row["split"] == "refit" and "em/voice_gain" in row]
    if not refits:
        return None
    last = refits[-1]
    chance = last["em/voice_gain"] < run.cfg.model.rpo.buffer.min_gain
    identified = bool(last["em/temperature_identified"])
    return Temperature(last.get("em/temperature", math.inf), identified, math.nan, "", last["em/voice_gain"], chance)


def _held_out(run: Run) -> Agreed | None:
    """The policy on one gold label a held-out pair, or on each of its labels where there is none."""
    if run.held_out is None:
        return None
    truth, delta = run.held_out.truth, run.held_out.delta
    _, first = np.unique(np.stack((run.held_out.pair_id, run.held_out.set)).astype(str), axis=1, return_index=True)
    taken = (run.held_out.gold == 0) | np.isin(np.arange(len(truth)), first)
    right = 0.5 + 0.5 * np.sign(truth[taken] * delta[taken])
    return Agreed(float(right.sum()), float(len(right)))


def _margins_and_votes(labels: Labels, annotators: int) -> tuple[torch.Tensor, Votes]:
    """Δ [n] of the pairs seen and their votes [n, V], padded to the widest."""
    rows = np.flatnonzero(~np.isnan(labels.delta_last) & (labels.annotator < annotators))
    rows = rows[np.argsort(labels.pair[rows], kind="stable")]
    _, start, pair, count = np.unique(labels.pair[rows], return_index=True, return_inverse=True, return_counts=True)
    shape = len(start), int(count.max(initial=0))
    place = pair, np.arange(len(rows)) - start[pair]
    annotator, sign = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    annotator[place], sign[place] = labels.annotator[rows], labels.sign[rows]
    return torch.from_numpy(labels.delta_last[rows][start]), Votes(torch.from_numpy(annotator), torch.from_numpy(sign))
