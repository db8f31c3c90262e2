r"""Which properties of answers drive the labels that are believed, and which those that are not.

A label for i over j is a comparison with x = f_i - f_j, turned so that the preferred answer comes first. Labels that
are more likely right than wrong (w > ½) get one linear Bradley-Terry fit, those with w < ½ another, and all of them a
third; x is divided by its root mean square over all labels, so that a strength is the change of log-odds for a typical
difference.

What a property drives among the distrusted is a habit of those who err: a label is distrusted because others, or the
policy, say the opposite, so a property that decides what is *right* has opposite signs in the two columns, and one that
misleads has the same sign in both, or none among the believed. Shapes: v labels, d properties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_rpo.crowd.factors.factor_settings import FactorSettings
from nemo_rpo.crowd.factors.linear_bt import covariance, fit_linear_bt
from nemo_rpo.shares import Z

BELIEVED, DISTRUSTED, ALL = "believed", "distrusted", "all"


@dataclass(frozen=True)
class Factor:
    """How strongly a property drives some labels.

    Attributes:
        name: of the property.
        labels: ``believed``, ``distrusted`` or ``all``.
        count: labels of that kind; used: those whose two answers differ in the property.
        prefers_more: share of these that prefer the answer with more of it.
        strength: change of the log-odds of being preferred for a typical difference, other properties held equal.
        low, high: 95 % interval, with labels of one prompt (or pair) taken as hanging together.
    """

    name: str
    labels: str
    count: int
    used: int
    prefers_more: float
    strength: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Drivers:
    """All properties by kind of label.

    Attributes:
        factors: by kind, then by property.
        notes: what could not be fitted, and why.
    """

    factors: list[Factor]
    notes: list[str]

    def of(self, labels: str) -> dict[str, Factor]:
        """Those of one kind of label, by name; empty where nothing was fitted."""
        return {factor.name: factor for factor in self.factors if factor.labels == labels}

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {"factors": [asdict(factor) for factor in self.factors], "notes": self.notes}


def drivers_of(
    x: np.ndarray,
    names: Sequence[str],
    right: np.ndarray,
    pair: np.ndarray,
    prompt: np.ndarray | None = None,
    settings: FactorSettings | None = None,
) -> Drivers:
    """Fits the three kinds of labels.

    Args:
        x: float64 [v, d], features of the preferred answer minus those of the other.
        names: of the features [d].
        right: float64 [v], the probability that each label is right; NaN where that is not known.
        pair, prompt: int64 [v], what each label is of; labels of one prompt hang together, or where there are few
            prompts (or none is given) those of one pair.
    """
    settings = settings or FactorSettings()
    scale = np.sqrt(np.square(x).mean(0)) if len(x) else np.zeros(len(names))
    varies = scale > 0
    groups = pair if prompt is None or np.unique(prompt).size < settings.fewest_prompts else prompt
    notes = [
        f"{name}: the answers do not differ in it" for name, differs in zip(names, varies, strict=True) if not differs
    ]
    kept = [name for name, differs in zip(names, varies, strict=True) if differs]
    scaled = x[:, varies] / scale[varies]
    found: list[Factor] = []
    for kind, those in ((BELIEVED, right > 0.5), (DISTRUSTED, right < 0.5), (ALL, np.ones(len(x), dtype=bool))):
        if those.sum() < settings.fewest:
            notes.append(f"{kind}: {int(those.sum())} labels are too few (fewer than {settings.fewest})")
        elif kept:
            found += _fitted(scaled[those], kept, kind, groups[those], settings.ridge)
    return Drivers(found, notes)


def _fitted(x: np.ndarray, names: Sequence[str], kind: str, groups: np.ndarray, ridge: float) -> list[Factor]:
    won = np.ones(len(x))
    theta = fit_linear_bt(x, won, ridge=ridge).theta
    apart = np.unique(groups).size == len(groups)
    errors = np.sqrt(np.diag(covariance(x, theta, won, ridge=ridge, groups=None if apart else groups)))
    found = []
    for j, name in enumerate(names):
        differs = x[:, j] != 0
        more = float((x[differs, j] > 0).mean()) if differs.any() else 0.5
        low, high = theta[j] - Z * errors[j], theta[j] + Z * errors[j]
        found.append(Factor(name, kind, len(x), int(differs.sum()), more, float(theta[j]), float(low), float(high)))
    return found
