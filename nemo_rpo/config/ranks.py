"""How many ranks a run's settings ask for, and whether they fit those that there are."""

from __future__ import annotations

import math

from nemo_rpo.config.experts.expert_shape import expert_ranks
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_config, validate_parallel


def check_run(cfg: RunConfig, world_size: int) -> None:
    """Raises :class:`ConfigError` for settings that do not fit each other or the ranks."""
    validate_config(cfg)
    validate_parallel(cfg, world_size)


def fewest_ranks(cfg: RunConfig) -> int:
    """Ranks to start on one machine where nobody says how many."""
    model = cfg.model
    fewest = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    fewest = math.lcm(fewest, expert_ranks(model))
    return cfg.trainer.devices or max(1, fewest // cfg.trainer.num_nodes)
