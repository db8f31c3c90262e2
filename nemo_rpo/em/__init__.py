"""Whom to believe: posteriors of labels, reliabilities of annotators, and the loss between them. Torch only."""

from nemo_rpo.em.buffer import BufferedReliability, MarginBuffer
from nemo_rpo.em.collectives import Collectives
from nemo_rpo.em.e_step import posterior, posterior_logit
from nemo_rpo.em.em_settings import BufferSettings, EMSettings
from nemo_rpo.em.fit.evidence import Evidence, evidence_of
from nemo_rpo.em.fit.full_fit import Estimate, estimate
from nemo_rpo.em.fit.standard_error import standard_errors
from nemo_rpo.em.fit.sweep import SweepResult, full_batch_em
from nemo_rpo.em.guards import warn_all
from nemo_rpo.em.objective import robust_loss
from nemo_rpo.em.pair_step import PairLosses, PairStep, add_evidence
from nemo_rpo.em.record import PairRecord, RecordedReliability
from nemo_rpo.em.reliability import AnnotatorReliability
from nemo_rpo.em.votes import Votes

__all__ = [
    "AnnotatorReliability",
    "BufferSettings",
    "BufferedReliability",
    "Collectives",
    "EMSettings",
    "Estimate",
    "Evidence",
    "MarginBuffer",
    "PairLosses",
    "PairRecord",
    "PairStep",
    "RecordedReliability",
    "SweepResult",
    "Votes",
    "add_evidence",
    "estimate",
    "evidence_of",
    "full_batch_em",
    "posterior",
    "posterior_logit",
    "robust_loss",
    "standard_errors",
    "warn_all",
]
