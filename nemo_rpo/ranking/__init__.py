"""Leaderboards from wins, losses and ties: whom people prefer, and how sure that is."""

from nemo_rpo.ranking.comparisons import ComparisonFormat, Comparisons, read_comparisons
from nemo_rpo.ranking.fitting import Fit, fit
from nemo_rpo.ranking.ranking_settings import RankSettings
from nemo_rpo.ranking.schedule import Results, Schedule
from nemo_rpo.ranking.standings import Leaderboard, Standing, leaderboard
from nemo_rpo.ranking.strengths import Strengths, bradley_terry

__all__ = [
    "ComparisonFormat",
    "Comparisons",
    "Fit",
    "Leaderboard",
    "RankSettings",
    "Results",
    "Schedule",
    "Standing",
    "Strengths",
    "bradley_terry",
    "fit",
    "leaderboard",
    "read_comparisons",
]
