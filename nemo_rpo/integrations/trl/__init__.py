"""Robust losses in Hugging Face TRL: a ``DPOTrainer`` that learns whom to believe.

``RPOTrainer`` takes the settings of ``model.rpo`` and a data set with an annotator column; ``preference_dataset`` makes
one from a preference file in any of the field's layouts. Tested with TRL 1.0 and 1.16;
wiring: ``examples/trl/train_rpo.py``.
"""

from nemo_rpo.errors import missing_extra

try:
    import trl  # noqa: F401
except ImportError as exc:
    raise missing_extra("trl", "trl") from exc

from nemo_rpo.integrations.trl.data import preference_dataset
from nemo_rpo.integrations.trl.trainer import RPOTrainer

__all__ = ["RPOTrainer", "preference_dataset"]
