"""One training run, from a checked configuration to its files. Called on every rank."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.config.fingerprint import config_fingerprint, fingerprint_differences
from nemo_rpo.config.load import config_to_yaml, print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.annotators import AnnotatorTable
from nemo_rpo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from nemo_rpo.megatron.model import MegatronGPTRPOModel
    from nemo_rpo.training.checkpoints import CheckpointStore
    from nemo_rpo.training.logging import RunLog
    from nemo_rpo.training.setup import Split
    from nemo_rpo.training.trainer import RPOTrainer


def train(cfg: RunConfig) -> None:
    """Trains as ``cfg`` says, from the latest checkpoint of its folder if there is one. Collective over the world.

    Leaves in the run's folder: ``config.yaml``, ``metrics.jsonl``, ``annotators.csv``, ``checkpoints/`` and, at the
    end, the policy as a Hugging Face folder ``hf/``.

    Raises:
        RPOError: anything the user can mend, before the first step wherever it can be known.
    """
    started = time.monotonic()
    if cfg.trainer.accelerator == "cpu":
        from nemo_rpo.megatron import cpu

        cpu.install()
    else:
        _require_gpu()
    from nemo_rpo.megatron import parallel
    from nemo_rpo.megatron.build import kernel_facts
    from nemo_rpo.training import setup
    from nemo_rpo.training.checkpoints import CheckpointStore
    from nemo_rpo.training.logging import RunLog, startup_log
    from nemo_rpo.training.schedule import Schedule
    from nemo_rpo.training.step0 import check_step0
    from nemo_rpo.training.trainer import RPOTrainer

    device = parallel.initialize(cfg)
    folder = setup.run_folder(cfg)
    store = CheckpointStore(folder / "checkpoints", cfg.exp_manager.checkpoint_callback_params)
    resumed_from = _checkpoint_to_resume(cfg, store)

    splits = setup.open_splits(cfg)
    architecture = setup.architecture_for(cfg, splits["train"].cache)
    schedule = Schedule.of(cfg.trainer.dpo, len(splits["train"].dataset))
    if resumed_from is not None:
        _take_annotators(cfg, resumed_from, splits)
    annotators = splits["train"].cache.annotators
    model = setup.build_model(cfg, architecture, len(annotators), schedule.total_steps, device)
    references = setup.references(cfg, model, splits)

    facts = {
        "steps": f"{schedule.total_steps:,} in all, {schedule.steps_per_epoch:,} an epoch",
        **{f"{name} data": split.cache.summary() for name, split in splits.items() if name != "sweep"},
        "annotators": f"{len(annotators):,}",
        **kernel_facts(cfg),
        "start": f"resumed from {resumed_from}" if resumed_from else str(cfg.pretrained_checkpoint.restore_from_path),
    }
    startup_log(cfg, facts, parallel.world_size())
    first_step = 0
    if resumed_from is not None:
        first_step, running_eta = _resume(cfg, resumed_from, store, model, splits)
    else:
        batch = splits["train"].dataset.global_batch(schedule.data_step(1))
        references["train"].add_ref_policy_logprobs(batch)
        check_step0(model, batch, cfg)
    _write_config(cfg, folder)
    with RunLog(cfg, folder, schedule.total_steps, first_step if resumed_from else None) as log:
        trainer = RPOTrainer(cfg, model, splits, references, schedule, store, log, folder, first_step, started)
        if resumed_from is not None:
            trainer.running_eta = running_eta
        finished = trainer.fit()
        if finished:
            _finish(cfg, trainer, log)
    parallel.finalize()


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but this machine has no usable GPU: set trainer.accelerator=cpu")


def _checkpoint_to_resume(cfg: RunConfig, store: CheckpointStore) -> Path | None:
    import torch.distributed as dist

    manager = cfg.exp_manager
    # Rank 0 looks for all: on a shared file system a folder may become visible on one node before another.
    found = [store.latest() if manager.resume_if_exists else None]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None and manager.resume_if_exists and not manager.resume_ignore_no_checkpoint:
        raise CheckpointError(
            f"no checkpoint in {store.folder}: set exp_manager.resume_ignore_no_checkpoint=true to start a new run"
        )
    return found[0]


def _take_annotators(cfg: RunConfig, checkpoint: Path, splits: dict[str, Split]) -> None:
    """Gives every annotator the index that the checkpoint knows them by."""
    from nemo_rpo.training.checkpoints import ANNOTATOR_FILE

    saved = AnnotatorTable.load(checkpoint / ANNOTATOR_FILE)
    cache = splits["train"].cache
    cache.use_annotators(saved.extended(cache.annotators, allow_new=cfg.model.data.allow_new_annotators))


def _resume(
    cfg: RunConfig, checkpoint: Path, store: CheckpointStore, model: MegatronGPTRPOModel, splits: dict[str, Split]
) -> tuple[int, Tensor]:
    """Restores the run; returns its step and the running η before the last sweep."""
    import torch

    from nemo_rpo.megatron.checkpoint import read_run

    run = read_run(checkpoint)
    differences = fingerprint_differences(run["config"], config_fingerprint(cfg))
    if differences:
        raise CheckpointError(
            f"{checkpoint} was trained with other settings: {'; '.join(differences)}: "
            "set them back, or give exp_manager.explicit_log_dir another folder for a new run"
        )
    if run["data"] != splits["train"].cache.folder.name and not cfg.model.data.allow_new_annotators:
        raise CheckpointError(
            f"{checkpoint} was trained on other data (or another tokenizer): give the same "
            "model.data.data_prefix.train, "
            "or exp_manager.explicit_log_dir another folder for a new run"
        )
    store.load(checkpoint, model)
    running = torch.tensor(run["running_eta"], dtype=torch.float64, device=model.device)
    return run["step"], model.em.eta if len(running) != model.em.num_annotators else running


def _write_config(cfg: RunConfig, folder: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config_to_yaml(cfg), encoding="utf-8")


def _finish(cfg: RunConfig, trainer: RPOTrainer, log: RunLog) -> None:
    """Exports the policy and prints the closing report."""
    from nemo_rpo.training.metrics import read_metrics
    from nemo_rpo.training.results import ANNOTATOR_CSV, annotator_rows
    from nemo_rpo.training.summary import final_report

    files = [trainer.folder / "config.yaml", *log.files, trainer.store.latest()]
    if cfg.exp_manager.checkpoint_callback_params.save_hf_on_train_end:
        files.append(_export(cfg, trainer))
    log.close()
    if os.environ.get("RANK", "0") != "0":
        return
    rows = []
    if cfg.model.rpo.enabled:
        files.insert(2, trainer.folder / ANNOTATOR_CSV)
        table = trainer.splits["train"].cache.annotators
        rows = annotator_rows(table, trainer.model.em.eta.tolist(), cfg.model.rpo.eta_init)
    print_on_first_rank("\n" + final_report(rows, read_metrics(trainer.folder), files))


def _export(cfg: RunConfig, trainer: RPOTrainer) -> Path:
    import torch.distributed as dist

    from nemo_rpo.megatron.huggingface.config import read_hf_config
    from nemo_rpo.megatron.huggingface.exporter import export_hf
    from nemo_rpo.training.setup import tokenizer_folder

    source = cfg.pretrained_checkpoint.restore_from_path
    config = read_hf_config(source) if source and (Path(source) / "config.json").exists() else None
    folder = trainer.folder / "hf"
    if dist.get_rank() == 0 and folder.exists():
        _remove_previous_export(folder)
    dist.barrier()
    export_hf(trainer.model.model, trainer.model.architecture, folder, tokenizer_folder(cfg), config)
    dist.barrier()
    return folder


def _remove_previous_export(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
