"""How scores of several responses become pairs; the defaults are those of the judges that use the same rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.judging_settings import CombinedJudge, ProgramJudge

Rule = Literal["difference", "pass_rate", "harmonic", "all_good"]
RULES: tuple[str, ...] = get_args(Rule)
_OF_ONE = ("difference", "pass_rate")


@dataclass
class ScoreRule:
    """Which pairs are made of a row with several scored responses.

    Attributes:
        rule: ``difference``: the higher score wins, by more than ``margin``. ``pass_rate``: AceCoder's: it must also be
            at least ``best``, by at least ``gap``, and the lower one above 0. ``harmonic``: the λ-harmonic mean of
            several scores above 0, with ``weights``; the higher one wins. ``all_good``: Σ log σ(score - reference),
            the reference being the ``quantile`` of the prompt's own scores; the higher one wins.
        scores: names of the scores.
        weights: of ``harmonic``, adding up to 1; empty: equal ones.
        margin, best, gap, quantile: see there.
        pick: ``all`` pairs of a row, or the ``extremes``: its best response with its worst.
    """

    rule: Rule = "difference"
    scores: list[str] = field(default_factory=lambda: ["rewards"])
    weights: list[float] = field(default_factory=list)
    margin: float = ProgramJudge.margin
    best: float = ProgramJudge.best
    gap: float = ProgramJudge.gap
    quantile: float = CombinedJudge.quantile
    pick: Literal["all", "extremes"] = "all"

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the option to change."""
        if not self.scores or len(set(self.scores)) < len(self.scores):
            raise ConfigError("--scores must name scores, each once")
        if self.rule in _OF_ONE and len(self.scores) > 1:
            raise ConfigError(
                f"--pairs-from-scores {self.rule} goes by one score; combine several by harmonic or all_good"
            )
        if self.rule == "harmonic":
            if len(self.scores) < 2:
                raise ConfigError("--pairs-from-scores harmonic combines two scores or more: --scores NAME,NAME")
            self.weights = self.weights or [1 / len(self.scores)] * len(self.scores)
            if len(self.weights) != len(self.scores) or min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
                raise ConfigError("--weights must be one a score, 0 or more, and add up to 1")
        elif self.weights:
            raise ConfigError("--weights goes with --pairs-from-scores harmonic")
        for name in ("best", "gap", "quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name} must be from 0 to 1, not {getattr(self, name):g}")
        if not self.margin >= 0:
            raise ConfigError(f"--margin must be 0 or more, not {self.margin:g}")
