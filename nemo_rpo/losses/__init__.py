"""Preference losses: pure functions of the log-probs of pairs, unreduced, with both directions for the EM.

``build_loss("dpo", beta=0.1)(PairLogprobs(...))`` is L(w≻l) [pairs]; ``.terms(...)`` has L(l≻w) and Δ beside it.

The names below are imported when they are first used: the table of side columns (:mod:`nemo_rpo.losses.columns`) needs
no torch.
"""

from typing import TYPE_CHECKING

from nemo_rpo.lazy import lazy_exports

if TYPE_CHECKING:
    from nemo_rpo.losses.base import LossTerms as LossTerms
    from nemo_rpo.losses.base import PreferenceLoss as PreferenceLoss
    from nemo_rpo.losses.columns import COLUMNS as COLUMNS
    from nemo_rpo.losses.columns import Column as Column
    from nemo_rpo.losses.families.listwise import ListwiseLoss as ListwiseLoss
    from nemo_rpo.losses.pair import PairLogprobs as PairLogprobs
    from nemo_rpo.losses.ranking import RankingLogprobs as RankingLogprobs
    from nemo_rpo.losses.reduction import Reduction as Reduction
    from nemo_rpo.losses.registry import build_loss as build_loss
    from nemo_rpo.losses.registry import loss_class as loss_class
    from nemo_rpo.losses.registry import loss_names as loss_names
    from nemo_rpo.losses.registry import register as register

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "base": ("LossTerms", "PreferenceLoss"),
        "columns": ("COLUMNS", "Column"),
        "families.listwise": ("ListwiseLoss",),
        "pair": ("PairLogprobs",),
        "ranking": ("RankingLogprobs",),
        "reduction": ("Reduction",),
        "registry": ("build_loss", "loss_class", "loss_names", "register"),
    },
)
