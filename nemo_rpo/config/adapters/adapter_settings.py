"""``model.peft``: what is trained instead of all weights, under NeMo's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nemo_rpo.config.types import Count, Fraction, Positive


@dataclass
class LoraTuningConfig:
    """``model.peft.lora_tuning``: W + α/r · B A beside each target, with W frozen."""

    adapter_dim: Count = 32  # r
    alpha: Positive | None = None  # α; null: adapter_dim, a scale of 1
    adapter_dropout: Fraction = 0.0  # of an adapter's input
    # Megatron's names (linear_qkv, …: one A for all that the layer is made of), NeMo's (attention_qkv, mlp, all) or
    # Hugging Face's (q_proj, …: an A each), see nemo_rpo.config.adapters.targets; experts, where they are named.
    target_modules: list[str] = field(default_factory=lambda: ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"])
    column_init_method: Literal["xavier", "kaiming"] = "xavier"  # of A (kaiming: peft's); B starts at 0


@dataclass
class PeftConfig:
    """``model.peft``: adapters or, without a scheme, all weights."""

    peft_scheme: Literal["lora", "none"] | None = None
    # An adapter to start from, which is then the reference too: a folder of peft's, or a checkpoint of this package.
    restore_from_path: str | None = None
    lora_tuning: LoraTuningConfig = field(default_factory=LoraTuningConfig)

    @property
    def lora(self) -> bool:
        """Whether adapters are trained, and nothing else."""
        return self.peft_scheme == "lora"

    @property
    def scale(self) -> float:
        """α/r."""
        tuning = self.lora_tuning
        return (tuning.alpha or tuning.adapter_dim) / tuning.adapter_dim
