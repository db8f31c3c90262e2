"""Whom to send a prompt to when models cost what they cost: a linear program. Shapes: n prompts, M models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.errors import ConfigError, missing_extra


@dataclass(frozen=True)
class Routing:
    """Who answers what.

    Attributes:
        share: float64 [n, M], the probability that a prompt goes to a model; rows add up to 1, and at most one prompt
            is divided.
        value, cost: their means over the prompts.
        price: what one more unit of cost a prompt would add to the value; 0 where the budget does not bind.
    """

    share: np.ndarray
    value: float
    cost: float
    price: float


def route(value: np.ndarray, cost: np.ndarray, budget: float) -> Routing:
    r"""The routing of highest mean value whose mean cost keeps within the budget.

    max Σ_xa p_xa v_xa / n   subject to   Σ_a p_xa = 1 for each x,   Σ_xa p_xa c_xa / n ≤ B,   p ≥ 0

    Args:
        value: v [n, M], win rates say. cost: c [M], or [n, M] where a prompt's length decides it.
        budget: B, a prompt, in the unit of the costs.

    Raises:
        ConfigError: no routing is that cheap. MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix
    except ImportError as exc:
        raise missing_extra("scipy", "rank") from exc
    n, models = value.shape
    cost = np.broadcast_to(np.asarray(cost, dtype=np.float64), value.shape)
    cheapest = float(cost.min(1).mean())
    if budget < cheapest:
        raise ConfigError(f"--budget {budget:g} is below the cheapest routing, {cheapest:g} a prompt: raise it")
    row, column = np.repeat(np.arange(n), models), np.arange(n * models)
    one_each = csr_matrix((np.ones(n * models), (row, column)), shape=(n, n * models))
    found = linprog(
        -value.ravel() / n,
        A_ub=csr_matrix(cost.reshape(1, -1) / n),
        b_ub=[budget],
        A_eq=one_each,
        b_eq=np.ones(n),
        bounds=(0, None),
        method="highs",
    )
    if found.status != 0:
        raise ConfigError(f"the routing under --budget {budget:g} was not found ({found.message.strip()})")
    share = found.x.reshape(n, models).clip(0, 1)
    spent = float((share * cost).sum() / n)
    return Routing(share, float((share * value).sum() / n), spent, max(0.0, -float(found.ineqlin.marginals[0])))


def best_without_prompts(value: np.ndarray, cost: np.ndarray, budget: float) -> Routing:
    """The same of a router that does not read the prompt: one mixture of models for all, by their mean values."""
    mean = value.mean(0, keepdims=True)
    costs = np.broadcast_to(np.asarray(cost, dtype=np.float64), value.shape).mean(0, keepdims=True)
    return route(mean, costs, budget)
