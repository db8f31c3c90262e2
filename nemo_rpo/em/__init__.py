"""Whom to believe: posteriors of labels, reliabilities of annotators, and the loss between them. Torch only."""

from nemo_rpo.em.objective import robust_loss
from nemo_rpo.em.posterior import posterior, posterior_logit
from nemo_rpo.em.reliability import AnnotatorReliability
from nemo_rpo.em.settings import EMSettings
from nemo_rpo.em.sweep import SweepResult, full_batch_em
from nemo_rpo.em.votes import Votes

__all__ = [
    "AnnotatorReliability",
    "EMSettings",
    "SweepResult",
    "Votes",
    "full_batch_em",
    "posterior",
    "posterior_logit",
    "robust_loss",
]
