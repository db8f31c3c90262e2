"""The settings of the EM, and the only place for their defaults (the YAML block ``model.rpo`` inherits them)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from nemo_rpo.errors import ConfigError

Objective = Literal["induced", "weighted", "bounded"]
ObjectiveSetting = Literal["auto", "induced", "weighted", "bounded"]
Estimator = Literal["ema", "buffer"]
Sweep = Literal["none", "end", "epoch"]
Margins = Literal["prequential", "latest"]
FEATURES = ("slot", "length", "strength", "confidence", "seconds", "sequence", "topic")


@dataclass
class BufferSettings:
    """``estimator: buffer``: one margin of every pair seen is kept, and a full EM runs over all of them now and then.

    Attributes:
        refit_every: optimizer steps from one full EM to the next; of a long epoch's first margins up to an eighth of
            the steps so far.
        margins: which margin of a pair is kept. ``prequential``: the first, taken before the pair's own gradient could
            draw it to its label; ``latest``: the last, which suits a policy that is not trained on these pairs.
        min_information: η keeps its start while the mean of (2m-1)² over the votes is below this, m being the
            probability of a vote given the margin and the other votes of its pair. At .05 (margins of standard
            deviation .46) it takes some 2,000 labels to know one annotator to ±.05.
        min_gain: nats by which the margins have to make the votes more likely than no margins do; below it they count
            for nothing, in the refit and in the E-step. Twice the gain of margins that know nothing is a χ² of one
            degree of freedom: of such fits one in 140 gains 3.
        fit_prior: fit the Beta prior to the population of annotators (empirical Bayes); else ``model.rpo.prior`` is it.
        fit_temperature: fit the temperature of the kept margins; else it is ``link_tau``.
        temperature_max_error: standard error of log τ up to which a fitted temperature counts as identified. Where it
            is not, the policy has no say in the E-step, and one annotator alone keeps his start.
    """

    refit_every: int = 50
    margins: Margins = "prequential"
    min_information: float = 0.05
    min_gain: float = 3.0
    fit_prior: bool = True
    fit_temperature: bool = True
    temperature_max_error: float = 0.4

    def validate(self) -> None:
        """Raises :class:`ConfigError` with one line that names the first setting that is out of its range."""
        _choice(self, "buffer.margins", Margins)
        _number(self, "buffer.refit_every", lambda x: x >= 1 and x == int(x), "a whole number of steps, 1 or more")
        _number(self, "buffer.min_information", lambda x: 0 <= x < 1, "from 0 to below 1")
        _number(self, "buffer.min_gain", lambda x: True, "a number of nats")
        _number(self, "buffer.temperature_max_error", lambda x: x > 0, "above 0")


@dataclass
class LabelModelInTraining:
    """``label_model``, under ``estimator: buffer``: more than one number an annotator, where the data know more of a
    vote than who cast it, and the votes ask for it (:mod:`nemo_rpo.em.label_model`). Where nothing is found, or the
    data know nothing, reliabilities are all there is.

    Attributes:
        enabled: whether it is fitted at all.
        features: ``auto`` tries what the data have (the order shown, topic, strength, confidence, times; the difference
            of lengths where pairs have several votes or gold labels) and takes what raises the marginal likelihood;
            ``none`` tries nothing; a list of names tries those: slot, length, strength, confidence, seconds, sequence,
            topic.
        gold: the data's gold labels are evidence, for their pairs and for the annotators.
        families: annotators of a declared family count for fewer votes.
        dependence: at the first refit, ask whether errors hang together where pairs have several votes, and believe
            such votes less.
        sample_votes: votes that features and dependence are searched on.
    """

    enabled: bool = True
    features: Literal["auto", "none"] | list[str] = "auto"
    gold: bool = True
    families: bool = True
    dependence: bool = True
    sample_votes: int = 20_000

    def validate(self) -> None:
        """Raises :class:`ConfigError` with one line that names the first setting that is out of its range."""
        wanted = [self.features] if isinstance(self.features, str) else self.features
        known = FEATURES if isinstance(self.features, list) else ("auto", "none")
        if not isinstance(wanted, list) or any(name not in known for name in wanted):
            raise ConfigError(
                f"model.rpo.label_model.features must be auto, none, or a list of {', '.join(FEATURES)}; "
                f"got {self.features!r}"
            )
        _number(
            self, "label_model.sample_votes", lambda x: x >= 1 and x == int(x), "a whole number of votes, 1 or more"
        )


@dataclass
class EMSettings:
    """How annotators are believed, and how that belief is updated.

    Attributes:
        objective: ``induced`` is the paper's Eq. 5, ``-w log p - (1-w) log(1-p)`` with the preference probability p
            that the loss induces; ``weighted`` is ``w L(w≻l) + (1-w) L(l≻w)``. They differ by log Z, which is 0 in the
            DPO family. ``bounded`` is ``log 2 - (2q-1) tanh(uΔ/2)/u``, q being what all but the policy says of the
            pair, which does not pull at pairs for ever (:func:`nemo_rpo.em.objective.bounded_loss`). ``auto``:
            ``bounded`` with ``estimator: buffer``, ``induced`` with ``ema``, which together are the paper's.
        estimator: ``buffer`` refits all annotators together from the kept margins of every pair, see
            :class:`BufferSettings`; ``ema`` is the paper's Eq. 7 over the annotators of each global batch, which mostly
            remembers its start where labels are few (``docs/estimators.md`` has the two side by side).
        eta_init: reliability of every annotator before any evidence (the paper's 0.9).
        alpha: EMA step per optimizer step in which the annotator occurs (the paper's 0.1).
        alpha_per_labels: n₀; when set, an annotator with n_k labels in the step moves by 1-(1-alpha)^(n_k/n₀), so that
            the weight of old evidence depends on the labels seen and not on how they were batched.
        eta_clamp: ε; every reliability stays in [ε, 1-ε], which keeps its logit finite.
        freeze_eta: reliabilities stay where they start: no step, refit or sweep moves them. Gold labels remain evidence
            for their pairs; a label model is not fitted.
        eta_floor: lower bound on reliabilities. 0.5 forbids adversaries, and thereby hides them.
        warmup_steps: optimizer steps in which the E-step ignores the model (Δ taken as 0) and η keeps its start. Needed
            by reference-free losses, whose margins before training say nothing about preferences.
        link_tau: τ; the E-step reads Δ/τ. The loss itself never does.
        prior: (a, b) pseudo-labels right and wrong that every sweep adds to every annotator.
        sweep: exact full-batch EM at fixed weights: ``none``, ``end`` (of training), or ``epoch`` (each end of an
            epoch, and the end of training). A sweep costs one forward pass over the data.
        sweep_max_iterations: bound on the M-steps of one sweep; 1 is a single M-step from the current η.
        sweep_tolerance: a sweep has converged once no reliability moves by more than this in one iteration.
        buffer: settings of ``estimator: buffer``.
        label_model: what else than a reliability is known of an annotator.
    """

    objective: ObjectiveSetting = "auto"
    estimator: Estimator = "buffer"
    eta_init: float = 0.9
    alpha: float = 0.1
    alpha_per_labels: float | None = None
    eta_clamp: float = 1e-4
    eta_floor: float | None = None
    freeze_eta: bool = False
    warmup_steps: int = 0
    link_tau: float = 1.0
    # Four labels, three of them right: human preference labels agree with a consensus about three times in four, and
    # four labels are outvoted by any annotator worth estimating, yet hold one with two labels between .50 and .83
    # instead of letting EM drive it to the clamp. a > b also breaks the label-switching symmetry in favour of honest
    # annotators.
    prior: tuple[float, float] = (3.0, 1.0)
    sweep: Sweep = "none"
    sweep_max_iterations: int = 1000
    sweep_tolerance: float = 1e-6
    buffer: BufferSettings = field(default_factory=BufferSettings)
    label_model: LabelModelInTraining = field(default_factory=LabelModelInTraining)

    @property
    def objective_in_force(self) -> Objective:
        """The objective, ``auto`` resolved."""
        if self.objective != "auto":
            return self.objective
        return "bounded" if self.estimator == "buffer" else "induced"

    @property
    def eta_bounds(self) -> tuple[float, float]:
        """The interval that every reliability is kept in: the clamp, raised to the floor where there is one."""
        lower = self.eta_clamp if self.eta_floor is None else max(self.eta_clamp, self.eta_floor)
        return lower, 1.0 - self.eta_clamp

    def validate(self) -> None:
        """Raises :class:`ConfigError` with one line that names the first setting that is out of its range."""
        _choice(self, "objective", ObjectiveSetting)
        _choice(self, "estimator", Estimator)
        _choice(self, "sweep", Sweep)
        _number(self, "eta_clamp", lambda x: 0 < x < 0.5, "between 0 and 0.5")
        if self.eta_floor is not None:
            _number(self, "eta_floor", lambda x: 0 <= x < 1 - self.eta_clamp, "null, or from 0 to below 1 - eta_clamp")
        lower, upper = self.eta_bounds
        _number(self, "eta_init", lambda x: lower <= x <= upper, f"between {lower} and {upper} (eta_clamp, eta_floor)")
        _number(self, "alpha", lambda x: 0 < x <= 1, "above 0 and at most 1")
        if self.alpha_per_labels is not None:
            _number(self, "alpha_per_labels", lambda x: x > 0, "null, or a number of labels above 0")
        _number(self, "warmup_steps", lambda x: x >= 0 and x == int(x), "a whole number of steps, 0 or more")
        _number(self, "link_tau", lambda x: x > 0, "above 0")
        self._check_prior()
        _number(self, "sweep_max_iterations", lambda x: x >= 1 and x == int(x), "a whole number, 1 or more")
        _number(self, "sweep_tolerance", lambda x: x > 0, "above 0")
        self.buffer.validate()
        self.label_model.validate()
        if self.estimator == "buffer" and min(self.prior) <= 0:
            raise ConfigError(f"model.rpo.prior must be above 0 twice under estimator: buffer; got {self.prior!r}")

    def _check_prior(self) -> None:
        pair = self.prior
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_is_finite_number(x) and x >= 0 for x in pair):
            raise ConfigError(f"model.rpo.prior must be two pseudo-counts [right, wrong], each 0 or more; got {pair!r}")


def _choice(settings: Any, name: str, literal: Any) -> None:
    value, options = getattr(settings, name.rpartition(".")[2]), get_args(literal)
    if value not in options:
        raise ConfigError(f"model.rpo.{name} must be one of {', '.join(options)}; got {value!r}")


def _number(settings: Any, name: str, accepts: Callable[[float], bool], expected: str) -> None:
    value = getattr(settings, name.rpartition(".")[2])
    if not _is_finite_number(value) or not accepts(value):
        raise ConfigError(f"model.rpo.{name} must be {expected}; got {value!r}")


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
