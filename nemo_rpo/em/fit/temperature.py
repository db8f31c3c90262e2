"""What the policy's margins are worth: their scale, where the votes can tell it, or nothing, with a reason."""

from __future__ import annotations

import math
from typing import NamedTuple

from nemo_rpo.em.em_settings import BufferSettings
from nemo_rpo.em.fit.empirical_bayes import Population

# A fit this far from 1 has run to where the likelihood is flat: no usable margins are off by a factor of 20.
_EDGE = 20.0


class Temperature(NamedTuple):
    """τ of the margins; 1/τ is what they weigh beside the votes.

    Attributes:
        value: what the EM divides the margins by; inf where they are not believed at all.
        identified: whether it was fitted, and the votes tell it.
        log_error: standard error of log τ of the fit; inf where it has no maximum, nan where τ was not to be fitted.
        reason: why it was not fitted, or the margins are not believed, in a sentence; empty if they are, as fitted.
        gain: nats by which the margins make the votes more likely than no margins do; nan before a fit.
        no_better_than_chance: whether a fit was made, and that is too little.
    """

    value: float
    identified: bool
    log_error: float
    reason: str
    gain: float = math.nan
    no_better_than_chance: bool = False

    @property
    def fitted(self) -> bool:
        """Whether the value comes from the votes."""
        return math.isfinite(self.value) and not math.isnan(self.log_error)

    @property
    def weight(self) -> float:
        """The policy's weight in the E-step: 1/τ; 0 where a fitted τ is not identified, or the margins say nothing."""
        return 0.0 if self.fitted and not self.identified else 1.0 / self.value


def judge_temperature(fit: Population, gain: float, annotators: int, settings: BufferSettings) -> Temperature:
    """What to make of a ``fit`` to the votes of some ``annotators`` that gained ``gain`` nats over none.

    With one label a pair, P(label) depends on the margin as ½ + (η-½) tanh(Δ/2τ). Where all margins are small this is
    (2η-1)Δ/4τ: only the ratio of reliability and temperature is seen, and the fit drifts along it. Of several
    annotators the ratios to each other are seen all the same, and an estimate with a wide error is better than none; of
    one there is nothing to be had, and the margins are left out.

    >>> settings = BufferSettings(temperature_max_error=0.25)
    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.08), 90.0, 12, settings).weight
    0.3448275862068966
    >>> unsure = judge_temperature(Population((8.0, 2.0), 2.9, 0.6), 9.0, 12, settings)
    >>> unsure.value, unsure.weight, unsure.reason
    (2.9, 0.0, 'the votes do not tell the scale of the margins (standard error of log τ 0.60, allowed 0.25)')
    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.6), 9.0, 1, settings).value
    inf
    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.6), 0.4, 12, settings).value
    inf
    """
    value = math.inf
    if not gain >= settings.min_gain:
        return _nothing(f"the margins make the votes no more likely than chance does ({_nats(gain)})", gain)
    if not 1 / _EDGE < fit.tau < _EDGE:
        reason = f"the fit of the margins' scale ran to its edge (τ = {fit.tau:.3g}): votes and margins do not agree"
        if fit.tau < 1 and annotators > 1:  # small margins that foretold nearly every vote: no scale, but knowledge
            value = 1 / _EDGE
    elif not fit.log_tau_error <= settings.temperature_max_error:
        error = f"standard error of log τ {fit.log_tau_error:.2f}, allowed {settings.temperature_max_error}"
        reason = f"the votes do not tell the scale of the margins ({error})"
        value = fit.tau if annotators > 1 else math.inf
    else:
        return Temperature(fit.tau, True, fit.log_tau_error, "", gain)
    return Temperature(value, False, fit.log_tau_error, reason, gain)


def judge_set_temperature(tau: float, gain: float, settings: BufferSettings) -> Temperature:
    """The configured temperature where it is not to be fitted, if margins at that scale say something."""
    if gain >= settings.min_gain:
        return Temperature(tau, False, math.nan, "model.rpo.buffer.fit_temperature is off", gain)
    return _nothing(f"margins at τ = {tau:g} make the votes no more likely than chance does ({_nats(gain)})", gain)


def _nats(gain: float) -> str:
    return f"{round(gain, 1) + 0.0:.1f} nats"  # never -0.0


def _nothing(reason: str, gain: float) -> Temperature:
    return Temperature(math.inf, False, math.nan, reason, gain, no_better_than_chance=True)
