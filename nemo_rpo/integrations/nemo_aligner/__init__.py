"""Robust losses in NVIDIA NeMo-Aligner 0.7's DPO recipes: a model, a trainer and data sets to put in place of its own.

``MegatronGPTRPOModel`` is a ``MegatronGPTDPOModel`` with the package's losses and EM; ``RPOTrainer`` a ``DPOTrainer``
that moves reliabilities with the weights; ``annotated_datasets`` carries annotators from the preference file into every
batch. Contract: NeMo-Aligner 0.7.0 with NeMo 2.1.0; wiring: ``examples/nemo_aligner/train_gpt_rpo.py``.
"""

from nemo_rpo.errors import MissingExtraError

try:
    import nemo_aligner  # noqa: F401
except ImportError as exc:
    raise MissingExtraError(
        "nemo_aligner is not installed; run inside NeMo-Aligner's container, or pip install nemo-aligner==0.7.0"
    ) from exc

from nemo_rpo.integrations.nemo_aligner.aligner_settings import rpo_settings
from nemo_rpo.integrations.nemo_aligner.data import (
    AnnotatorCollate,
    TrainingLabels,
    annotated_datasets,
    training_labels,
)
from nemo_rpo.integrations.nemo_aligner.model import MegatronGPTRPOModel
from nemo_rpo.integrations.nemo_aligner.trainer import RPOTrainer

__all__ = [
    "AnnotatorCollate",
    "MegatronGPTRPOModel",
    "RPOTrainer",
    "TrainingLabels",
    "annotated_datasets",
    "rpo_settings",
    "training_labels",
]
