"""Flip rates of pairs: found where they were planted, and the stationary point of the likelihood that they maximise."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rpo.em.fit.flip_rates import fit_flip_rates
from nemo_rpo.errors import ConfigError


def planted(pairs: int, coefficients: list[float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Margins of the recorded label and features, where flips follow ``coefficients`` and the policy is calibrated."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.cat((torch.ones(pairs, 1), torch.rand(pairs, len(coefficients) - 1, generator=generator) * 2), 1)
    margin = 3 * torch.randn(pairs, generator=generator)
    truth = torch.where(torch.rand(pairs, generator=generator) < margin.sigmoid(), 1.0, -1.0)
    flipped = torch.rand(pairs, generator=generator) < (features @ torch.tensor(coefficients)).sigmoid()
    return margin * truth * torch.where(flipped, -1.0, 1.0), features


def test_planted_rates_are_found():
    coefficients = [-3.0, 1.5, 0.0]
    found, _ = fit_flip_rates(*planted(20_000, coefficients))
    torch.testing.assert_close(found, torch.tensor(coefficients, dtype=torch.float64), atol=0.25, rtol=0)


def test_it_is_where_the_posterior_is_flat():
    margin, features = planted(500, [-1.0, 0.7])
    found, value = fit_flip_rates(margin, features)
    c = found.clone().requires_grad_()
    flip, u = (features.double() @ c).sigmoid(), margin.double()
    likelihood = torch.log((1 - flip) * u.sigmoid() + flip * (-u).sigmoid()).sum()
    start = torch.tensor([math.log(1 / 9), 0.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(likelihood - ((c - start) ** 2).sum() / 8, c)
    assert slope.abs().max() < 1e-3 and likelihood.item() / 500 == pytest.approx(value)


def test_features_without_an_intercept_are_refused():
    with pytest.raises(ConfigError, match=r"features \[3, d\] whose first is 1"):
        fit_flip_rates(torch.zeros(3), torch.zeros(3, 2))
