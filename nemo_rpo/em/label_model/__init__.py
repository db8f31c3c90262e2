"""A label model with skills and leanings, chosen by evidence, judged by anchors, tested for dependence. Torch only."""

from nemo_rpo.em.label_model.coded_votes import FlatVotes, VoteFeatures
from nemo_rpo.em.label_model.features import VoteColumns, vote_features
from nemo_rpo.em.label_model.label_model_fit import LabelModelFit, fit_label_model
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings

__all__ = [
    "FlatVotes",
    "LabelModelFit",
    "LabelModelSettings",
    "VoteColumns",
    "VoteFeatures",
    "fit_label_model",
    "vote_features",
]
