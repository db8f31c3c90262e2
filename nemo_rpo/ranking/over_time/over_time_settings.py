"""How strengths are followed through time, and the only place for its defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nemo_rpo.errors import ConfigError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_WIDTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smhdw]?)")


@dataclass
class OverTimeSettings:
    """Settings of ``rank --over-time``.

    Attributes:
        time_key: field with the time of a comparison: a number, or a date and time (ISO 8601).
        width: of a time slice, ``7d`` say (s, m, h, d, w; a bare number is seconds, or whatever a bare number in the
            file means); "" for a ``slices``-th of the span.
        slices: into which the span is cut where no width is given.
        walk: standard deviation of a strength's change from one slice to the next; ``None``: by the evidence, 0: none.
        unchanged: players known not to change, frozen models say, which the others are measured against.
        exact_states: number of states up to which determinants and variances are those of a dense matrix.
        probes, lanczos_steps: of the estimated log-determinant beyond that.
        draws: posterior draws behind the variances beyond that.
        seed: of probes and draws.
        tolerance: Newton's method ends once no strength moves by more.
        accuracy: of the logarithm of the walk's scale.
    """

    time_key: str = "time"
    width: str = ""
    slices: int = 50
    walk: float | None = None
    unchanged: list[str] = field(default_factory=list)
    exact_states: int = 1500
    probes: int = 3
    lanczos_steps: int = 10
    draws: int = 12
    seed: int = 0
    tolerance: float = 1e-6
    accuracy: float = 0.15

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        if self.walk is not None and not 0 <= self.walk < float("inf"):
            raise ConfigError(f"--walk must be 0 or more, not {self.walk}")
        if self.width:
            self.seconds()

    def seconds(self) -> float:
        """The width in seconds."""
        found = _WIDTH.fullmatch(self.width.strip())
        if not found or not float(found[1]):
            raise ConfigError(f"--slice must be a width above 0 such as 12h, 7d or 2w, not {self.width!r}")
        return float(found[1]) * _UNITS[found[2]]
