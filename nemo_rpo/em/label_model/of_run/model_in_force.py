"""The label model that a run goes by, as numbers that all ranks share and a checkpoint keeps.

Shapes: K annotators, d coefficients each, F families, G points of the majority's grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import SLOT
from nemo_rpo.em.label_model.coefficients import Population


class ModelInForce(NamedTuple):
    """A member of the family with what was found around it, on the device of the estimator.

    Attributes:
        names: its features, the skill first.
        theta: float64 [K, d], coefficients.
        population: prior of its rows.
        correlation: ρ of the declared families, float64 [F].
        grid: float64 [G], of the majority, which is believed instead of the model; empty where the model is.
        shares: log-odds by which the truth goes with a column, by name, of those that are fitted.
        from_anchors: the coefficients are those of the anchored pairs alone.
        temperature, stretch: what the votes' evidence is divided by, and standard errors are multiplied with, because
            errors hang together; 1 where they do not.
    """

    names: tuple[str, ...]
    theta: Tensor
    population: Population
    correlation: Tensor
    grid: Tensor
    shares: Mapping[str, float] = MappingProxyType({})
    from_anchors: bool = False
    temperature: float = 1.0
    stretch: float = 1.0

    def numbers(self) -> Tensor:
        """All of it but for the names, float64 [4 + 6 d + K d + F + G]; :func:`from_numbers` reads it. That
        share of a name that is not fitted is infinite, and the slot's stands in the skill's place."""
        shares = [self.shares.get(name, math.inf) for name in (SLOT, *self.names[1:])]
        if SLOT in self.names:
            shares[self.names.index(SLOT)] = math.inf
        flags = (self.from_anchors, self.temperature, self.stretch, len(self.grid))
        head = self.theta.new_tensor([float(flag) for flag in (*flags, *shares)])
        return torch.cat((head, *self.population, self.theta.flatten(), self.grid, self.correlation))


_FLAGS = 4


def from_numbers(numbers: Tensor, names: Sequence[str], num_annotators: int) -> ModelInForce:
    """What :meth:`ModelInForce.numbers` made of it; views of ``numbers``."""
    d = len(names)
    from_anchors, temperature, stretch, points = numbers[:_FLAGS].tolist()
    sizes = [d, 5 * d, num_annotators * d, int(points)]
    shares, population, theta, grid, correlation = numbers[_FLAGS:].split([*sizes, len(numbers) - _FLAGS - sum(sizes)])
    of_names = zip((SLOT, *names[1:]), shares.tolist(), strict=True)
    return ModelInForce(
        tuple(names),
        theta.view(num_annotators, d),
        Population(*population.view(5, d)),
        correlation,
        grid,
        {name: share for name, share in of_names if share != math.inf},
        bool(from_anchors),
        temperature,
        stretch,
    )


def of_first_rank(
    found: ModelInForce, all_names: Sequence[str], from_first: Callable[[Tensor], None], points: int
) -> ModelInForce:
    """The first rank's ``found``, to the bit. Ranks that hold copies of the same pairs fit each for itself, and one
    whose processor rounds otherwise may even choose other features.

    Args:
        all_names: features that there are, the same on every rank, in the order of ``names``.
        from_first: see :class:`nemo_rpo.em.collectives.Collectives`; called twice, with 8 bytes a feature, and with 8
            bytes a number.
        points: G of a majority's grid.
    """
    mask = found.theta.new_tensor([*(float(name in found.names) for name in all_names), float(len(found.grid))])
    from_first(mask)
    *taken, grid = mask.tolist()
    names = tuple(name for name, here in zip(all_names, taken, strict=True) if here)
    if names != found.names or int(grid) != len(found.grid):
        k, d, new = len(found.theta), len(names), found.theta.new_zeros
        population = Population(*new(5, d))
        found = found._replace(names=names, theta=new(k, d), population=population, grid=new(points if grid else 0))
    numbers = found.numbers()
    from_first(numbers)
    return from_numbers(numbers, names, len(found.theta))
