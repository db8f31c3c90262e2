"""How comparisons become a leaderboard, and the only place for its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nemo_rpo.errors import ConfigError

# Observations of one thing (a player's comparisons, a topic's prompts) below which drawing them anew shows nothing.
FEW = 5
Ties = Literal["davidson", "half", "drop"]
Resample = Literal["comparison", "annotator"]


@dataclass
class RankSettings:
    """Settings of a fit.

    Attributes:
        ties: ``davidson`` models them (Davidson 1970), ``half`` counts half a win for each side, ``drop`` ignores them.
        prior: wins and losses that every player is given against an imagined one of strength 1. 0 is maximum
            likelihood, which exists only if every player is led to from every other by a chain of wins.
        crowd_bt: estimate the reliability of every annotator too, and weigh what they say by it.
        bootstrap: resamples behind the intervals; 0 for none.
        resample: what is drawn anew: single comparisons, or annotators with all they said, which is the honest choice
            where one annotator's judgements hang together.
        confidence: share of the resamples inside an interval.
        seed: of the resampling.
        tolerance: a fit has converged once no log-strength moves by more than this in one iteration.
        max_iterations: bound on the iterations.
        refit_parameters: players (with ``crowd_bt`` and annotators) up to which resamples are fitted anew; of more they
            are one step from the best fit.
        crowd_tolerance, crowd_max_iterations: the same for the rounds of strengths and reliabilities in turn.
    """

    ties: Ties = "davidson"
    prior: float = 1.0
    crowd_bt: bool = False
    bootstrap: int = 200
    resample: Resample = "comparison"
    confidence: float = 0.95
    seed: int = 0
    tolerance: float = 1e-10
    max_iterations: int = 10_000
    refit_parameters: int = 400
    crowd_tolerance: float = 1e-7
    crowd_max_iterations: int = 1000

    def check(self) -> None:
        """Raises :class:`ConfigError` with one line that names the setting to change."""
        for name, options in (("ties", get_args(Ties)), ("resample", get_args(Resample))):
            if getattr(self, name) not in options:
                raise ConfigError(f"--{name} must be one of {', '.join(options)}, not {getattr(self, name)!r}")
        if not 0 <= self.prior < float("inf"):
            raise ConfigError(f"--prior must be 0 or more, not {self.prior}")
        if self.crowd_bt and self.prior == 0:
            raise ConfigError("--crowd-bt needs a prior: its likelihood has no maximum where annotators can be doubted")
        if self.bootstrap < 0:
            raise ConfigError(f"--bootstrap must be 0 or more, not {self.bootstrap}")
        if self.seed < 0:
            raise ConfigError(f"--seed must be 0 or more, not {self.seed}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence must be between 0 and 1, not {self.confidence}")
