"""What is known of an adapter before its weights are read: rank, scale, layers, and the base it belongs to.

A folder of peft's holds ``adapter_config.json`` and ``adapter_model.safetensors``; one that this package wrote also
``nemo_rpo_adapter.json``, with the matrices and the fingerprint of the base's weights. A checkpoint of a run under LoRA
has the same in its ``run.json``. Needs no Megatron.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.adapters.targets import EXPERTS, SETTING, named_by_hugging_face, resolve_targets, targets_in
from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.fused_experts import GATE_UP
from nemo_rpo.megatron.checkpoint.run_file import RUN_FILE, read_run

PEFT_CONFIG, PEFT_WEIGHTS, BASE_FILE = "adapter_config.json", "adapter_model.safetensors", "nemo_rpo_adapter.json"
LORA = "lora"  # the entry of run.json
SINGLE_EXPERTS = (
    "has adapters of single experts, as of transformers 4: load it into its base with peft on transformers 5, and save "
    "it again"
)
_OF_ONE_EXPERT = re.compile(r"(^|\.)(w[123]|experts\.\d+\..*)$")
_TUNING = "model.peft.lora_tuning"
# What peft's adapters may have beside A and B; another value than these would be another function.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "lora_bias": (False, None),
}


@dataclass(frozen=True)
class AdapterDescription:
    """What an adapter is.

    Attributes:
        rank: r. scale: α/r.
        matrices: those that have one, by Hugging Face's names, in a fixed order; None: the weights say it (peft's
            ``all-linear`` and patterns).
        base: fingerprint of the base's weights (:func:`nemo_rpo.training.origin.weights_fingerprint`); None: not known.
    """

    rank: int
    scale: float
    matrices: tuple[str, ...] | None
    base: str | None

    @classmethod
    def of_run(cls, peft: PeftConfig, model: GPTArchitecture, base: str) -> AdapterDescription:
        """That of a run's adapters."""
        targets = targets_in(model, peft.lora_tuning.target_modules)
        return cls(peft.lora_tuning.adapter_dim, peft.scale, tuple(named_by_hugging_face(targets)), base)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json``."""
        return {**asdict(self), "matrices": list(self.matrices or ())}


def is_adapter(path: Path) -> bool:
    """Whether ``path`` is a folder of peft's, or a checkpoint that holds adapters alone.

    Raises :class:`CheckpointError` for a checkpoint whose ``run.json`` is damaged.
    """
    if (path / PEFT_CONFIG).is_file():
        return True
    return (path / RUN_FILE).is_file() and LORA in read_run(path)


def read_description(path: Path) -> AdapterDescription:
    """That of a folder for which :func:`is_adapter` holds.

    Raises:
        CheckpointError: it is damaged, or peft's adapter is more than A and B.
    """
    if not (path / PEFT_CONFIG).is_file():
        said = read_run(path)[LORA]
        return AdapterDescription(said["rank"], said["scale"], tuple(said["matrices"]), said["base"])
    config, beside = _read(path / PEFT_CONFIG), {}
    if (path / BASE_FILE).is_file():
        beside = _read(path / BASE_FILE)
    where = path / PEFT_CONFIG
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {config.get('peft_type')}, and only LORA can be started from")
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise CheckpointError(
                f"{where}: {key}={config[key]} is more than low-rank matrices: merge it into its base"
            )
    rank, alpha, modules = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{where} has r={rank} and lora_alpha={alpha}, which are no rank and scale")
    for key, kind in (("target_parameters", list), ("rank_pattern", dict), ("alpha_pattern", dict)):
        if not isinstance(config.get(key) or kind(), kind):
            raise CheckpointError(f"{where}: {key} is no {kind.__name__}; have peft save the adapter again")
    parameters = list(map(str, config.get("target_parameters") or []))
    if not _doubles_gate_up(config.get("rank_pattern"), config.get("alpha_pattern"), rank, alpha):
        raise CheckpointError(f"{where}: rank_pattern or alpha_pattern is more than one rank and scale: merge it")
    named = tuple(beside["matrices"]) if "matrices" in beside else None
    if named is None and isinstance(modules, list):
        if any(_OF_ONE_EXPERT.search(str(name)) for name in modules):
            raise CheckpointError(f"{path} {SINGLE_EXPERTS}")
        names = {str(name).rpartition(".")[2] for name in modules} | {of for name in parameters for of in _within(name)}
        try:
            named = tuple(named_by_hugging_face(resolve_targets(sorted(names))))
        except ConfigError as exc:
            raise CheckpointError(f"{where}: {str(exc).removeprefix(f'{SETTING}: ')}") from exc
    return AdapterDescription(rank, alpha / rank, named, beside.get("base"))


def _doubles_gate_up(
    ranks: Mapping[str, Any] | None, alphas: Mapping[str, Any] | None, rank: int, alpha: float
) -> bool:
    """Whether nothing but experts' gate and up, as one tensor with an A each, has twice the rank, and twice the α."""
    ranks, alphas = ranks or {}, alphas or {}
    return ranks.keys() == alphas.keys() and all(
        name.endswith(GATE_UP) and (ranks[name], alphas[name]) == (2 * rank, 2 * alpha) for name in ranks
    )


def _within(parameter: str) -> list[str]:
    """The matrices, by the names of the settings, in one of peft's ``target_parameters``."""
    *_, last = parameter.removesuffix(".weight").split(".")
    if parameter.endswith(".weight"):
        return [last]
    return [f"{EXPERTS}.gate_proj", f"{EXPERTS}.up_proj"] if last == GATE_UP else [f"{EXPERTS}.{last}"]


def check_fits(path: Path, peft: PeftConfig, model: GPTArchitecture, base: str) -> None:
    """Refuses an adapter to start from that is not of the run's shape, or of another base than ``base``.

    Raises:
        ConfigError: with the setting to change.
    """
    found, wanted = read_description(path), AdapterDescription.of_run(peft, model, base)
    if found.rank != wanted.rank:
        raise ConfigError(
            f"{path} has rank {found.rank}, and {_TUNING}.adapter_dim={wanted.rank}: set it to {found.rank}"
        )
    if abs(found.scale - wanted.scale) > 1e-9:
        alpha = found.scale * found.rank
        raise ConfigError(
            f"{path} has a scale of {found.scale:g}, the run {wanted.scale:g}: set {_TUNING}.alpha={alpha:g}"
        )
    if found.matrices is not None and set(found.matrices) != set(wanted.matrices):
        raise ConfigError(
            f"{path} has adapters of {', '.join(found.matrices)}, the run of {', '.join(wanted.matrices)}: set "
            f"{SETTING}=[{','.join(found.matrices)}]"
        )
    if found.base is not None and found.base != base:
        raise ConfigError(
            f"{path} is an adapter of other weights than those of pretrained_checkpoint.restore_from_path: name its "
            "base there"
        )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{path} cannot be read ({exc}): restore it") from exc
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object: restore it")
    return found
