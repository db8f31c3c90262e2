"""Preference losses: pure functions of the log-probs of pairs, unreduced, with both directions for the EM.

``build_loss("dpo", beta=0.1)(PairLogprobs(...))`` is L(w≻l) [pairs]; ``.terms(...)`` has L(l≻w) and Δ beside it.
"""

from nemo_rpo.losses import reference_free, sigmoid, squared  # noqa: F401  (importing a family registers its losses)
from nemo_rpo.losses.base import LossTerms, PreferenceLoss
from nemo_rpo.losses.columns import COLUMNS, Column
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import build_loss, loss_class, loss_names, register

__all__ = [
    "COLUMNS",
    "Column",
    "LossTerms",
    "PairLogprobs",
    "PreferenceLoss",
    "build_loss",
    "loss_class",
    "loss_names",
    "register",
]
