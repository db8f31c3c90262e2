"""The run's configuration: one dataclass tree, the only place for defaults; YAML files name what differs."""

from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig

__all__ = ["RunConfig", "load_config"]
