"""FA-DPO's other half: how likely a pair's label was flipped, from what its texts are like and what the policy says."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.errors import ConfigError

_START = 0.1  # flip rate of every pair before the first iteration
# Of each coefficient around 0, of the intercept around the start: a Gaussian that a few dozen pairs outweigh.
_SPREAD = 2.0


def fit_flip_rates(
    margin: Tensor, features: Tensor, max_iterations: int = 200, tolerance: float = 1e-6
) -> tuple[Tensor, float]:
    r"""Coefficients c of the flip rates ε = σ(c · f) that explain what was recorded best, by EM.

    ::

        E-step   r = ε σ(-u) / ((1-ε) σ(u) + ε σ(-u))          the label was flipped
        M-step   one Newton step of the logistic regression of r on f, with c ~ N((logit .1, 0, …), 2²)

    Args:
        margin: u of every pair [n], of a policy that has not learnt these labels by heart (a first epoch's).
        features: [n, d], the first of them 1 (:func:`nemo_rpo.losses.families.estimated_noise.flip_features`).

    Returns:
        c float64 [d], and the log-likelihood a pair in nats.

    Raises:
        ConfigError: the first feature is not 1, or shapes that do not belong together.

    >>> u, f = torch.tensor([2.0, -2.0, 2.0, 2.0]), torch.ones(4, 1)
    >>> fit_flip_rates(u, f)[0].sigmoid()  # one of four contradicts the policy
    tensor([0.1272], dtype=torch.float64)
    """
    if features.dim() != 2 or len(features) != len(margin) or not (features[:, 0] == 1).all():
        raise ConfigError(f"flip rates need features [{len(margin)}, d] whose first is 1; got {list(features.shape)}")
    u, f = margin.detach().double(), features.detach().double()
    precision = torch.full((f.shape[1],), _SPREAD**-2, dtype=torch.float64, device=u.device)
    expected = torch.zeros_like(precision)
    expected[0] = math.log(_START / (1 - _START))
    found = expected.clone()
    for _ in range(max_iterations):
        log_odds = f @ found
        flipped = torch.sigmoid(log_odds - u)
        rate = torch.sigmoid(log_odds)
        gradient = f.t() @ (flipped - rate) - precision * (found - expected)
        curvature = (f * (rate * (1 - rate)).unsqueeze(1)).t() @ f + precision.diag()
        move = torch.linalg.solve(curvature, gradient)
        found = found + move
        if move.abs().max() < tolerance:
            break
    log_odds = f @ found
    recorded = torch.logaddexp(F.logsigmoid(-log_odds) + F.logsigmoid(u), F.logsigmoid(log_odds) + F.logsigmoid(-u))
    return found, recorded.mean().item()
