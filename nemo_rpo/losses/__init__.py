"""Preference losses: pure functions of the log-probs of pairs, unreduced, with both directions for the EM.

``build_loss("dpo", beta=0.1)(PairLogprobs(...))`` is L(w≻l) [pairs]; ``.terms(...)`` has L(l≻w) and Δ beside it.
"""

from nemo_rpo.losses import families
from nemo_rpo.losses.base import LossTerms, PreferenceLoss
from nemo_rpo.losses.columns import COLUMNS, Column
from nemo_rpo.losses.families.listwise import ListwiseLoss
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.ranking import RankingLogprobs
from nemo_rpo.losses.reduction import Reduction
from nemo_rpo.losses.registry import build_loss, loss_class, loss_names, register

__all__ = [
    "COLUMNS",
    "Column",
    "ListwiseLoss",
    "LossTerms",
    "PairLogprobs",
    "PreferenceLoss",
    "RankingLogprobs",
    "Reduction",
    "build_loss",
    "families",
    "loss_class",
    "loss_names",
    "register",
]
