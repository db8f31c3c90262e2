"""What checkpoints and the log say of the adapters of a run under LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rpo.config.adapters.targets import EXPERT_MATRICES, targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.checkpoint.adapter.description import LORA, AdapterDescription
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.megatron.network.lora.switch import trained_weights


def described(cfg: RunConfig, architecture: GPTArchitecture, origin: Mapping[str, str]) -> dict[str, Any]:
    """The entry of ``run.json``; none where all weights are trained."""
    peft = cfg.model.peft
    return {LORA: AdapterDescription.of_run(peft, architecture, origin["weights"]).to_dict()} if peft.lora else {}


def facts(cfg: RunConfig, model: MegatronGPTRPOModel) -> dict[str, str]:
    """What the start-up log says. Collective over the pipeline's ranks."""
    peft = cfg.model.peft
    if not peft.lora:
        return {}
    trained, total = trained_weights(model.model)
    targets = targets_in(model.architecture, peft.lora_tuning.target_modules)
    layers = ", ".join(targets)
    layers += " (experts have none)" if model.architecture.experts and not targets.keys() & EXPERT_MATRICES else ""
    shape = f"rank {peft.lora_tuning.adapter_dim}, scale {peft.scale:g}, beside {layers}"
    start = "the base, adapters off" if peft.restore_from_path is None else "the adapter that it starts from"
    reference = cfg.model.rpo.reference_from or start
    return {
        "LoRA": f"{shape}; the reference is {reference}",
        "trainable": f"{trained:,} of {total:,} weights ({trained / total:.2%})",
    }
