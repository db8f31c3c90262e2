"""The trained policy in the forms that other programs load: a Hugging Face folder, a ``.nemo``; under LoRA these have
the adapters worked into the weights, and the adapter is a folder of peft's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch.distributed as dist

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.megatron.checkpoint.adapter.exporter import export_peft
from nemo_rpo.megatron.checkpoint.huggingface.config import config_from_architecture, read_hf_config
from nemo_rpo.megatron.checkpoint.huggingface.exporter import export_hf
from nemo_rpo.megatron.checkpoint.nemo import config as nemo_config
from nemo_rpo.megatron.checkpoint.nemo.archive import is_nemo
from nemo_rpo.megatron.checkpoint.nemo.exporter import export_nemo
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.megatron.network.autobridge import export_bridge
from nemo_rpo.megatron.network.lora.switch import merged
from nemo_rpo.training.data_of_run import tokenizer_spec
from nemo_rpo.training.origin import weights_fingerprint
from nemo_rpo.training.process.rank0 import on_first_rank
from nemo_rpo.training.setup import starting_point

_HF_FOLDER, _NEMO_FILE, ADAPTER_FOLDER = "hf", "policy.nemo", "adapter"
_WANTED = "exp_manager.checkpoint_callback_params"


def check(cfg: RunConfig, architecture: GPTArchitecture) -> None:
    """Refuses, before the first step, an export that the model has no form for. Raises :class:`ConfigError`."""
    params, start = cfg.exp_manager.checkpoint_callback_params, starting_point(cfg)
    if params.save_hf_on_train_end and not (start and (start / "config.json").exists()):
        try:
            config_from_architecture(architecture)
        except ConfigError as exc:
            raise ConfigError(f"{exc}: set {_WANTED}.save_hf_on_train_end=false") from exc
    if params.save_nemo_on_train_end:
        if StepNeeds.of(base_loss(cfg.model), cfg.model).reward_outputs:
            raise ConfigError(f"a .nemo has no place for a reward head: set {_WANTED}.save_nemo_on_train_end=false")
        if start is None or not is_nemo(start):
            nemo_config.config_from_architecture(architecture, tokenizer_spec(cfg).settings(), cfg.trainer.precision)


def drop(folder: Path) -> None:
    """Removes the exports in a run's ``folder``: whatever :func:`write` finds there is of this run's last step.

    Raises:
        CheckpointError: one cannot be removed.
    """
    for path in (folder / _HF_FOLDER, folder / _NEMO_FILE, folder / ADAPTER_FOLDER):
        try:
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)  # of a link to another disk, the link alone
            else:
                shutil.rmtree(path)
        except OSError as exc:
            raise CheckpointError(
                f"{path}, of an earlier end of this run, cannot be removed ({exc.strerror or exc}), and must not be "
                "taken for this one's: remove it and start again"
            ) from exc


def write(cfg: RunConfig, model: MegatronGPTRPOModel, folder: Path) -> list[Path]:
    """Writes what ``exp_manager.checkpoint_callback_params`` asks for and is not there yet; its places. Collective,
    with :meth:`MegatronGPTRPOModel.gather_weights`.

    Raises:
        CheckpointError: one cannot be written.
    """
    params, start = cfg.exp_manager.checkpoint_callback_params, starting_point(cfg)
    wanted: dict[Path, Callable[[Path], None]] = {}
    if params.save_hf_on_train_end:
        config = read_hf_config(start) if start and (start / "config.json").exists() else None
        # How the model is to be sampled from, and where it stops; the tokenizer may be another folder's.
        generation = start / "generation_config.json" if config else None
        files = (tokenizer_spec(cfg).folder, config)
        bridged = cfg.model.provider == "megatron_bridge"
        wanted[folder / _HF_FOLDER] = (
            partial(export_bridge, model.model, start)
            if bridged
            else _merged(
                model,
                lambda path: export_hf(model.model, model.architecture, path, *files, generation_config=generation),
            )
        )
    if params.save_nemo_on_train_end:
        source = start if start and is_nemo(start) else None
        told = (tokenizer_spec(cfg).settings(), source)
        wanted[folder / _NEMO_FILE] = _merged(
            model, lambda path: export_nemo(model.model, model.architecture, path, *told)
        )
    if params.save_adapter_on_train_end and cfg.model.peft.lora:
        base = str(start)
        reward = bool(model.needs.reward_outputs)
        fingerprint = weights_fingerprint(base)
        wanted[folder / ADAPTER_FOLDER] = lambda path: export_peft(
            model.model, model.architecture, path, cfg.model.peft, base, fingerprint, reward
        )
    model.gather_weights()
    for path, export in wanted.items():
        if not on_first_rank(path.exists):
            export(path)
            dist.barrier()
    return list(wanted)


def _merged(model: MegatronGPTRPOModel, export: Callable[[Path], None]) -> Callable[[Path], None]:
    def exported(path: Path) -> None:
        with merged(model.model):
            export(path)

    return exported
