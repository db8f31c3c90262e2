"""What the forks of :mod:`fork_server` find imported: the engine on a CPU with what a run of it imports later on.

Where an environment has no Megatron-Core or transformers, what it has. Whatever holds state is not here but in a fork.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch  # noqa: F401

from nemo_rpo import nemo_toolkit

ENGINE = (
    "training.run",
    "training.data_of_run",
    "training.setup",
    "training.trainer",
    "commands.score",
    "commands.evaluate",
)
OF_NEMO = ("lightning.pytorch", "nemo.core.config", "nemo.utils.exp_manager", "nemo.collections.common.tokenizers")
BESIDE_IT = ("torch._dynamo", "omegaconf", "psutil", "pandas", "pyarrow.parquet", "safetensors.torch")

if find_spec("megatron") is not None:
    from nemo_rpo.megatron import cpu

    cpu.install()
    for name in ENGINE:
        importlib.import_module(f"nemo_rpo.{name}")
if nemo_toolkit.version() is not None:
    for name in OF_NEMO:
        importlib.import_module(name)
for name in BESIDE_IT:
    if find_spec(name.partition(".")[0]) is not None:
        importlib.import_module(name)
if find_spec("transformers") is not None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401
