"""Noise or taste: groups of annotators with truths of their own, where votes can tell. Torch only."""

from nemo_rpo.em.taste.taste_fit import GroupsTried, TasteFit, fit_tastes
from nemo_rpo.em.taste.taste_settings import TasteSettings

__all__ = ["GroupsTried", "TasteFit", "TasteSettings", "fit_tastes"]
