"""What the policy's margins are worth: their scale, where the votes can tell it, or nothing, with a reason."""

from __future__ import annotations

import math
from typing import NamedTuple

from nemo_rpo.em.fit.empirical_bayes import Population

# A fit this far from 1 has run to where the likelihood is flat: no usable margins are off by a factor of 20.
_EDGE = 20.0
# Twice this is a χ² of one degree of freedom: votes that know nothing of the margins gain as much once in 140 fits.
_LEAST_GAIN = 3.0


class Temperature(NamedTuple):
    """τ of the margins; 1/τ is what they weigh beside the votes.

    Attributes:
        value: what the EM divides the margins by; inf where they are not believed at all.
        identified: whether it was fitted.
        log_error: standard error of log τ of the fit; inf without one.
        reason: why it was not fitted, or the margins are not believed, in a sentence; empty if they are, as fitted.
        gain: nats by which the margins make the votes more likely than no margins do; nan before a fit.
    """

    value: float
    identified: bool
    log_error: float
    reason: str
    gain: float = math.nan

    @property
    def no_better_than_chance(self) -> bool:
        """Whether a fit was made, and the votes are as likely without the margins."""
        return self.gain < _LEAST_GAIN


def judge_temperature(fit: Population, gain: float, max_error: float) -> Temperature:
    """The fitted temperature where the margins say something and the votes identify their scale, else inf.

    With one label a pair, P(label) depends on the margin as ½ + (η-½) tanh(Δ/2τ). Where all margins are small this is
    (2η-1)Δ/4τ: only the ratio of reliability and temperature is seen, and the fit drifts along it. Taking the margins
    at some other scale then would move every reliability by as much as that scale is off.

    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.08), gain=90.0, max_error=0.25).value
    2.9
    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.6), gain=9.0, max_error=0.25).reason
    'the votes do not tell the scale of the margins (standard error of log τ 0.60, allowed 0.25)'
    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.6), gain=0.4, max_error=0.25).value
    inf
    """
    if not gain >= _LEAST_GAIN:
        reason = (
            f"the margins make the votes no more likely than chance does (gain {gain:.1f} nats, needed {_LEAST_GAIN:g})"
        )
    elif not 1 / _EDGE < fit.tau < _EDGE:
        reason = f"the fit of the margins' scale ran to its edge (τ = {fit.tau:.3g}): votes and margins do not agree"
    elif not fit.log_tau_error <= max_error:
        error = f"standard error of log τ {fit.log_tau_error:.2f}, allowed {max_error}"
        reason = f"the votes do not tell the scale of the margins ({error})"
    else:
        return Temperature(fit.tau, True, fit.log_tau_error, "", gain)
    return Temperature(math.inf, False, fit.log_tau_error, reason, gain)


def judge_set_temperature(tau: float, gain: float) -> Temperature:
    """The configured temperature where it is not to be fitted, if margins at that scale say something."""
    if gain >= _LEAST_GAIN:
        return Temperature(tau, False, math.inf, "model.rpo.buffer.fit_temperature is off", gain)
    reason = f"margins at τ = {tau:g} make the votes no more likely than chance does ({gain:.1f} nats)"
    return Temperature(math.inf, False, math.inf, reason, gain)
