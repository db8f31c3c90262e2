"""Which weights and which settings a path to a run, a checkpoint, an exported model or an adapter stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_rpo.config.adapters.adapter_settings import LoraTuningConfig, PeftConfig
from nemo_rpo.config.load import load_config
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.adapter.description import PEFT_CONFIG, is_adapter, read_description
from nemo_rpo.megatron.checkpoint.run_file import RUN_FILE
from nemo_rpo.training.origin import weights_fingerprint


class Target(NamedTuple):
    """What is evaluated: ``weights``, a checkpoint's folder, a Hugging Face one or an adapter's, under the settings
    ``cfg``.
    """

    weights: Path
    cfg: RunConfig


def target_of(
    path: Path,
    config: Path | None = None,
    reference: Path | None = None,
    overrides: Sequence[str] = (),
    notify: Callable[[str], None] | None = None,
    needs_reference: bool = True,
) -> Target:
    """The settings are those of ``config``, else of the run that the checkpoint belongs to, else the defaults.

    Args:
        path: a run's folder (its adapter, its export, or its last checkpoint), one of its checkpoints, or a folder of
            Hugging Face's, a model or an adapter of peft's.
        reference: the starting weights that margins are relative to, over those of the run.
        needs_reference: whether anything is relative to them.

    Raises:
        CheckpointError: no such folder, or neither weights nor a run in it.
        ConfigError: bad settings; a Hugging Face folder of no run, and no ``reference``, under a loss that has one; or
            merged weights of a run whose reference is an adapter.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; name a run, one of its checkpoints, or a Hugging Face folder")
    weights = _weights(path)
    found = config or next((p / "config.yaml" for p in (weights.parent, weights.parent.parent) if _is_run(p)), None)
    if found is None and reference is None and not (needs_reference and _has_reference(path, overrides)):
        reference = path
    if found is None and reference is None:
        raise ConfigError(
            f"{path} is not part of a run, so its reference model is unknown: name its starting weights with "
            "--reference, or a run's config.yaml with --config"
        )
    given = []
    if reference is not None:
        given = [f"pretrained_checkpoint.restore_from_path={reference}", "model.rpo.reference_from=null"]
    if found is None:
        given.append(f"model.tokenizer.type={reference if is_adapter(weights) else path}")
    arguments = [*given, *overrides]
    cfg = load_config(str(found), arguments, notify=notify or (lambda text: None)) if found else _defaults(arguments)
    _set_adapters(cfg, weights)
    # What a run measures in its own validations, and where its annotators start, are of no concern here.
    rpo = cfg.model.rpo
    rpo.kl_to_start, rpo.first_policy, rpo.stop_kl, rpo.believe_from = False, None, None, None
    return Target(weights, cfg)


def _has_reference(path: Path, overrides: Sequence[str]) -> bool:
    """Whether the loss that margins are of compares with a frozen policy."""
    given = [f"pretrained_checkpoint.restore_from_path={path}", *overrides]
    return is_adapter(path) or not base_loss(_defaults(given).model).reference_free


def _set_adapters(cfg: RunConfig, weights: Path) -> None:
    """Adapters where ``weights`` are some, and none where they are whole."""
    peft, base = cfg.model.peft, cfg.pretrained_checkpoint.restore_from_path
    if not is_adapter(weights):
        if peft.lora and peft.restore_from_path is not None:
            raise ConfigError(
                f"{weights} is the run's policy with its adapter merged, and its reference is the adapter that it "
                "started from: name the run, its adapter or one of its checkpoints"
            )
        cfg.model.peft = PeftConfig()
        return
    said = read_description(weights)
    if said.base is not None and said.base != weights_fingerprint(base):
        raise ConfigError(
            f"{weights} is an adapter of other weights than those in {base}: name its base with --reference"
        )
    if not peft.lora:
        if said.matrices is None:
            raise ConfigError(f"{weights} does not list its target_modules: name a run's config.yaml with --config")
        tuning = LoraTuningConfig(said.rank, said.scale * said.rank, target_modules=list(said.matrices))
        cfg.model.peft = PeftConfig("lora", lora_tuning=tuning)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _defaults(overrides: Sequence[str]) -> RunConfig:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.yaml"
        empty.write_text("{}\n", encoding="utf-8")
        return load_config(str(empty), overrides, notify=lambda text: None)


def _weights(path: Path) -> Path:
    if (path / RUN_FILE).is_file() or (path / "config.json").is_file() or (path / PEFT_CONFIG).is_file():
        return path
    if not _is_run(path):
        raise CheckpointError(f"{path} is no run, no checkpoint of one and no Hugging Face folder")
    for export, file in (("adapter", PEFT_CONFIG), ("hf", "config.json")):
        if (path / export / file).is_file():
            return path / export
    checkpoints = [step for step in (path / "checkpoints").glob("step=*") if (step / RUN_FILE).is_file()]
    if not checkpoints:
        raise CheckpointError(f"{path} has neither an export nor a checkpoint yet; let the run reach its first one")
    return max(checkpoints, key=lambda step: step.name)
