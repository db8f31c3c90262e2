"""Steps of an EM that go further than the EM itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_FURTHEST = 64.0  # times an EM's own step


def rise(
    step: Callable[[np.ndarray], np.ndarray],
    objective: Callable[[np.ndarray], float],
    within: Callable[[np.ndarray], np.ndarray],
    theta: np.ndarray,
    tolerance: float,
    most: int,
) -> tuple[np.ndarray, int, bool]:
    r"""The fixed point of an EM, the steps that were taken, and whether it was reached.

    Two steps of the EM, r and then r + v, tell how fast it is coming to its fixed point. From there SQUAREM goes on::

        θ' = θ - 2αr + α²v,        α = -|r| / |v|

    and from θ' a step of the EM. Where the objective has not risen by that, the second step itself is taken: so it
    never falls.

    Source: R. Varadhan and C. Roland, "Simple and globally convergent methods for accelerating the convergence of any
    EM algorithm", Scandinavian Journal of Statistics 35 (2008); scheme S3.

    Args:
        step: one step of the EM.
        objective: what no step of the EM lowers.
        within: brings a point, which it may change, within the bounds that the EM keeps.
        theta: where to begin.
        tolerance, most: it ends when a step of the EM moves no parameter by more, or after so many steps.

    >>> found, steps, converged = rise(lambda x: 0.9 * x + 0.1, lambda x: -float(x @ x - 2 * x.sum()), lambda x: x,
    ...     np.array([5.0, -3.0]), 1e-9, 100)
    >>> found.round(6).tolist(), steps < 10, converged
    ([1.0, 1.0], True, True)
    """
    value, steps = objective(theta), 0
    while steps < most:
        once = step(theta)
        steps += 1
        first = once - theta
        if np.abs(first).max() < tolerance:
            return once, steps, True
        twice = step(once)
        steps += 1
        bend = twice - once - first
        length = np.linalg.norm(bend)
        theta, ahead = twice, None
        if length > 0:
            far = min(max(float(np.linalg.norm(first) / length), 1.0), _FURTHEST)
            ahead = step(within(once - first + 2 * far * first + far**2 * bend))
            steps += 1
        if ahead is not None and (risen := objective(ahead)) >= value:
            theta, value = ahead, risen
        else:
            value = objective(theta)
    return theta, steps, False
