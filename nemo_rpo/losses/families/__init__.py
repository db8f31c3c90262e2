"""The losses, one file a family; importing this package registers them all."""

from nemo_rpo.losses.families import (
    estimated_noise,
    fixed_noise,
    hinge,
    listwise,
    margins,
    nash,
    reference_free,
    reward_aware,
    reward_model,
    self_play,
    sigmoid,
    squared,
    ties,
    token_level,
    unpaired,
)

__all__ = [
    "estimated_noise",
    "fixed_noise",
    "hinge",
    "listwise",
    "margins",
    "nash",
    "reference_free",
    "reward_aware",
    "reward_model",
    "self_play",
    "sigmoid",
    "squared",
    "ties",
    "token_level",
    "unpaired",
]
