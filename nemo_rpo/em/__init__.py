"""Whom to believe: posteriors of labels, reliabilities of annotators, and the loss between them. Torch only.

The names below are imported when they are first used: the settings (:mod:`nemo_rpo.em.em_settings`) need no torch.
"""

from typing import TYPE_CHECKING

from nemo_rpo.lazy import lazy_exports

if TYPE_CHECKING:
    from nemo_rpo.em.buffer import BufferedReliability as BufferedReliability
    from nemo_rpo.em.buffer import MarginBuffer as MarginBuffer
    from nemo_rpo.em.collectives import Collectives as Collectives
    from nemo_rpo.em.e_step import posterior as posterior
    from nemo_rpo.em.e_step import posterior_logit as posterior_logit
    from nemo_rpo.em.em_settings import BufferSettings as BufferSettings
    from nemo_rpo.em.em_settings import EMSettings as EMSettings
    from nemo_rpo.em.estimators import build_estimator as build_estimator
    from nemo_rpo.em.fit.evidence import Evidence as Evidence
    from nemo_rpo.em.fit.evidence import evidence_of as evidence_of
    from nemo_rpo.em.fit.full_fit import Estimate as Estimate
    from nemo_rpo.em.fit.full_fit import estimate as estimate
    from nemo_rpo.em.fit.standard_error import standard_errors as standard_errors
    from nemo_rpo.em.fit.sweep import SweepResult as SweepResult
    from nemo_rpo.em.fit.sweep import full_batch_em as full_batch_em
    from nemo_rpo.em.guards import warn_all as warn_all
    from nemo_rpo.em.objective import agreement as agreement
    from nemo_rpo.em.objective import bounded_loss as bounded_loss
    from nemo_rpo.em.objective import label_loss as label_loss
    from nemo_rpo.em.objective import robust_loss as robust_loss
    from nemo_rpo.em.pair_step import PairLosses as PairLosses
    from nemo_rpo.em.pair_step import PairStep as PairStep
    from nemo_rpo.em.pair_step import add_evidence as add_evidence
    from nemo_rpo.em.record import PairRecord as PairRecord
    from nemo_rpo.em.record import RecordedReliability as RecordedReliability
    from nemo_rpo.em.reliability import AnnotatorReliability as AnnotatorReliability
    from nemo_rpo.em.votes import Votes as Votes

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "buffer": ("BufferedReliability", "MarginBuffer"),
        "collectives": ("Collectives",),
        "e_step": ("posterior", "posterior_logit"),
        "em_settings": ("BufferSettings", "EMSettings"),
        "estimators": ("build_estimator",),
        "fit.evidence": ("Evidence", "evidence_of"),
        "fit.full_fit": ("Estimate", "estimate"),
        "fit.standard_error": ("standard_errors",),
        "fit.sweep": ("SweepResult", "full_batch_em"),
        "guards": ("warn_all",),
        "objective": ("agreement", "bounded_loss", "label_loss", "robust_loss"),
        "pair_step": ("PairLosses", "PairStep", "add_evidence"),
        "record": ("PairRecord", "RecordedReliability"),
        "reliability": ("AnnotatorReliability",),
        "votes": ("Votes",),
    },
)
