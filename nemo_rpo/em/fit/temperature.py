"""The scale of the margins: fitted where the votes can tell it, and left alone, with a reason, where they cannot."""

from __future__ import annotations

from typing import NamedTuple

from nemo_rpo.em.fit.empirical_bayes import Population

# A fit this far from 1 has run to where the likelihood is flat: no usable margins are off by a factor of 20.
_EDGE = 20.0


class Temperature(NamedTuple):
    """τ of the margins.

    Attributes:
        value: what the EM divides the margins by.
        identified: whether it was fitted.
        log_error: standard error of log τ of the fit; inf without one.
        reason: why it was not fitted, in a sentence; empty if it was.
    """

    value: float
    identified: bool
    log_error: float
    reason: str


def judge_temperature(fit: Population, fallback: float, max_error: float) -> Temperature:
    """The fitted temperature where the votes identify it, else ``fallback``.

    With one label a pair, P(label) depends on the margin as ½ + (η-½) tanh(Δ/2τ). Where all margins are small this is
    (2η-1)Δ/4τ: only the ratio of reliability and temperature is seen, and the fit drifts along it.

    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.08), fallback=1.0, max_error=0.25).value
    2.9
    >>> judge_temperature(Population((8.0, 2.0), 2.9, 0.6), fallback=1.0, max_error=0.25).reason
    'the votes do not tell the scale of the margins (standard error of log τ 0.60, allowed 0.25)'
    """
    if not 1 / _EDGE < fit.tau < _EDGE:
        reason = f"the fit of the margins' scale ran to its edge (τ = {fit.tau:.3g}): votes and margins do not agree"
    elif not fit.log_tau_error <= max_error:
        error = f"standard error of log τ {fit.log_tau_error:.2f}, allowed {max_error}"
        reason = f"the votes do not tell the scale of the margins ({error})"
    else:
        return Temperature(fit.tau, True, fit.log_tau_error, "")
    return Temperature(fallback, False, fit.log_tau_error, reason)
