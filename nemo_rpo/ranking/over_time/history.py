"""Every player's strength over time with its interval, whether it has changed, and how fast strengths walk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.over_time.chains import scipy_parts
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings
from nemo_rpo.ranking.over_time.spread import Field, variances
from nemo_rpo.ranking.over_time.states import States, states_of
from nemo_rpo.ranking.over_time.walk import Mode, Walk
from nemo_rpo.ranking.ranking_settings import RankSettings

_STILL = 0.01  # standard deviation of a walk over the whole span that passes for none
_FAST = 1.0  # a slice: more is no walk
_NEAR = 1e-2  # of modes on the way to the likeliest scale: the evidence changes with the square


@dataclass(frozen=True)
class PlayerHistory:
    """One player.

    Attributes:
        score, low, high: strength in the last slice of all, with its interval, whenever the player was last seen.
            Intervals are those of a strength against the field (:class:`nemo_rpo.ranking.over_time.spread.Field`).
        change, change_low, change_high: from the first to the last slice that it played in.
        comparisons: of the player. time: the middles of the slices that it played in, seconds.
        strength, strength_low, strength_high: in these slices.
    """

    rank: int
    player: str
    score: float
    low: float
    high: float
    change: float
    change_low: float
    change_high: float
    comparisons: int
    time: list[float]
    strength: list[float]
    strength_low: list[float]
    strength_high: list[float]

    @property
    def moved(self) -> str:
        """``better``, ``worse``, or nothing where the interval of the change holds 0."""
        return "better" if self.change_low > 0 else "worse" if self.change_high < 0 else ""


@dataclass(frozen=True)
class History:
    """Attributes:
    walk: standard deviation of a strength's change from one slice to the next.
    evidence: log Bayes factor for that walk against strengths that stand still; ``None`` where the walk was given.
    """

    comparisons: int
    slices: int
    begin: float
    width: float
    walk: float
    evidence: float | None
    tie_strength: float
    confidence: float
    players: list[PlayerHistory]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        found = asdict(self)
        for row, player in zip(found["players"], self.players, strict=True):
            row["moved"] = player.moved
        return found


def ranks_over_time(
    comparisons: Comparisons, settings: RankSettings | None = None, over_time: OverTimeSettings | None = None
) -> History:
    """Strengths over time.

    Raises:
        ConfigError: settings that are out of range or do not go with time.
        DataError: no times, or nothing but ties.
        MissingExtraError: scipy is not installed.
    """
    settings, over_time = settings or RankSettings(), over_time or OverTimeSettings()
    settings.check()
    over_time.check()
    if settings.crowd_bt:
        raise ConfigError(
            "--over-time takes judges at their word: leave out --crowd-bt; nemo-rpo annotators shows whose reliability "
            "changes"
        )
    if settings.prior == 0:
        raise ConfigError("--over-time needs a prior, since nothing else holds the common level: --prior 1")
    if settings.ties == "drop":
        comparisons = comparisons.take(comparisons.outcome != 0)
    if not comparisons.outcome.any():
        raise DataError("nobody won: there are only ties, which say nothing about who is better")
    states = states_of(comparisons, over_time)
    if over_time.walk == 0 or not len(states.step):
        states = states_of(replace(comparisons, time=np.zeros(len(comparisons))), replace(over_time, width=""))
    walk, evidence = Walk(states, settings.prior, settings.ties == "half", over_time), None
    if not len(states.step):
        scale, mode = 0.0, walk.mode(1.0)
    elif over_time.walk is None:
        scale, mode, evidence = _likeliest(walk, states, over_time.accuracy)
    else:
        scale = over_time.walk
        mode = walk.mode(scale)
    return _history(comparisons, states, walk, scale, mode, evidence, settings, over_time)


def _likeliest(walk: Walk, states: States, accuracy: float) -> tuple[float, Mode, float]:
    """The scale of most evidence, the mode there, and the evidence beyond that of strengths that stand still."""
    least = _STILL / math.sqrt(states.slices)
    latest = walk.mode(least, tolerance=_NEAR)
    still = (walk.evidence(least, latest), least, latest)
    tried = [still]

    def cost(log_scale: float) -> float:
        nonlocal latest
        scale = math.exp(log_scale)
        latest = walk.mode(scale, latest, _NEAR)
        tried.append((walk.evidence(scale, latest), scale, latest))
        return -tried[-1][0]

    _, _, optimize = scipy_parts()
    bounds = math.log(least), math.log(_FAST)
    optimize.minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": accuracy})
    evidence, scale, mode = max(tried, key=lambda found: found[0])
    return scale, walk.mode(scale, mode), evidence - still[0]


def _history(
    comparisons: Comparisons,
    states: States,
    walk: Walk,
    scale: float,
    mode: Mode,
    evidence: float | None,
    settings: RankSettings,
    over_time: OverTimeSettings,
) -> History:
    still = np.isin(np.array(comparisons.players, dtype=object), over_time.unchanged)
    variance, of_change = variances(walk, scale, mode, Field(states, still), over_time)
    z = NormalDist().inv_cdf((1 + settings.confidence) / 2)
    players, first, last = states.ends()
    unseen = np.where(still[players], 0, states.slices - 1 - states.slice[last])
    now = z * np.sqrt(variance[last] + unseen * scale**2)
    s, reach = mode.strength, z * np.sqrt(variance)
    score, change, of_change = s[last], s[last] - s[first], z * np.sqrt(of_change.clip(0))
    played = np.bincount(np.concatenate([comparisons.first, comparisons.second]), minlength=len(comparisons.players))
    columns = (states.times(states.slice), s, s - reach, s + reach)
    rows = [
        PlayerHistory(
            rank, comparisons.players[players[a]], *_around(score[a], now[a]), *_around(change[a], of_change[a]),
            int(played[players[a]]), *(x[first[a] : last[a] + 1].tolist() for x in columns),
        )
        for rank, a in enumerate(np.lexsort((players, -score)).tolist(), 1)
    ]  # fmt: skip
    nu = float(np.exp(mode.log_nu))
    return History(
        len(comparisons), states.slices, states.begin, states.width, scale, evidence, nu, settings.confidence, rows
    )


def _around(value: float, reach: float) -> tuple[float, float, float]:
    return float(value), float(value - reach), float(value + reach)
