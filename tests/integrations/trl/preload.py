"""What the forks of :mod:`fork_server` find imported beside TRL."""

from __future__ import annotations

import trl.trainer.dpo_trainer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

import nemo_rpo.integrations.trl  # noqa: F401
