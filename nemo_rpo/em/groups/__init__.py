"""Groups of annotators with truths of their own: which of them each annotator belongs to, learnt with the rewards."""

from nemo_rpo.em.groups.estimator import TasteReliability
from nemo_rpo.em.groups.group_step import group_preference

__all__ = ["TasteReliability", "group_preference"]
