"""Robust losses in NVIDIA Megatron-Bridge: ``finetune(config, step, callbacks=[RPOCallback(step)])``.

``RPOForwardStep`` computes the losses, ``RPOCallback`` says when the reference runs and when η moves,
``PreferenceDatasetProvider`` is ``config.dataset``, and ``RPOCheckpointManager`` keeps η beside the weights;
``use_rpo`` makes the settings of any recipe fit, ``llama3_8b_rpo_config`` is a recipe. Written for Megatron-Bridge 0.6
(Megatron-Core 0.19); wiring: ``examples/megatron_bridge/train_rpo.py``.
"""

from nemo_rpo.errors import missing_extra

try:
    import megatron.bridge  # noqa: F401
except ImportError as exc:
    raise missing_extra("megatron-bridge", "bridge") from exc

from nemo_rpo.integrations.megatron_bridge.callback import RPOCallback
from nemo_rpo.integrations.megatron_bridge.checkpoint import RPOCheckpointManager
from nemo_rpo.integrations.megatron_bridge.data import PreferenceDatasetProvider
from nemo_rpo.integrations.megatron_bridge.host import use_rpo
from nemo_rpo.integrations.megatron_bridge.recipe import llama3_8b_rpo_config
from nemo_rpo.integrations.megatron_bridge.step import RPOForwardStep

__all__ = [
    "PreferenceDatasetProvider",
    "RPOCallback",
    "RPOCheckpointManager",
    "RPOForwardStep",
    "llama3_8b_rpo_config",
    "use_rpo",
]
