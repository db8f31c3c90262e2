"""What of TRL's own configuration goes with :class:`RPOTrainer`, and what would be ignored or be wrong."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import version
from inspect import signature
from typing import Any

from accelerate import Accelerator
from packaging.version import Version
from transformers import Trainer
from trl import DPOConfig, DPOTrainer

from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.errors import ConfigError
from nemo_rpo.losses import PreferenceLoss
from nemo_rpo.losses.reduction import Mean

_OLDEST = "1.0.0"
# Whether compute_ref_log_probs is told which model it is of: since TRL 1.9.
REFERENCE_IS_GIVEN = "model" in signature(DPOTrainer.compute_ref_log_probs).parameters
# Options that choose or change TRL's loss, with the value that leaves it alone.
_LOSS_OPTIONS = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
}


def check_version() -> None:
    """Raises :class:`ConfigError` for a TRL before 1.0."""
    installed = version("trl")
    if Version(installed) < Version(_OLDEST):
        raise ConfigError(f"RPOTrainer needs TRL {_OLDEST} or newer, found {installed}: pip install -U trl")


def check_args(args: DPOConfig | None, rpo: RPOConfig) -> float:
    """β, from the one place where TRL's users set it.

    Raises:
        ConfigError: ``args`` asks for another loss than the block ``rpo`` does, or both set β.
    """
    if "beta" in rpo.loss_options:
        raise ConfigError("β is DPOConfig.beta: take beta out of rpo.loss_options")
    for name, neutral in _LOSS_OPTIONS.items():
        value = neutral if args is None else getattr(args, name)
        if value != neutral:
            raise ConfigError(
                f"DPOConfig.{name}={value} would not reach RPOTrainer's loss: leave it at {neutral}, and choose the "
                "loss with rpo.base_loss and rpo.loss_options"
            )
    if getattr(args, "use_liger_kernel", False) and hasattr(DPOTrainer, "_compute_loss_liger"):
        raise ConfigError("Liger's loss would replace RPOTrainer's: set DPOConfig.use_liger_kernel=False")
    if args is None:
        return next(spec.default for spec in fields(DPOConfig) if spec.name == "beta")
    return args.beta


def scale_no_loss(trainer: Trainer) -> None:
    """Tells transformers before 5.19 what ``loss_is_scaled_for_ga`` tells later ones."""
    if Version(version("transformers")) < Version("5.19.0"):
        trainer.model_accepts_loss_kwargs, trainer.compute_loss_func = False, trainer.compute_loss


def check_loss(loss: PreferenceLoss) -> None:
    """Raises :class:`ConfigError` for a loss that weighs each pair by the whole global batch (Dr. DPO)."""
    if not isinstance(loss.reduction, Mean):
        raise ConfigError(
            f"rpo.base_loss={loss.name} weighs every pair by the whole global batch, which no micro-batch here has: "
            "choose another loss, or train with this package's own engine"
        )


def check_processes(accelerator: Accelerator) -> None:
    """Raises :class:`ConfigError` where several processes see the same pairs, whose evidence would count twice."""
    parallel: Any = accelerator.parallelism_config
    for name in ("tp_size", "cp_size", "sp_size"):
        if parallel is not None and getattr(parallel, name, 1) > 1:
            raise ConfigError(f"RPOTrainer runs data parallel (DDP, FSDP, DeepSpeed): set {name} to 1, or train with "
                              "this package's own engine")  # fmt: skip
