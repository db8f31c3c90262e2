"""The end of a run: the policy as a Hugging Face folder, ``annotators.csv``, and the closing report."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed as dist

from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron.huggingface.config import read_hf_config
from nemo_rpo.megatron.huggingface.exporter import export_hf
from nemo_rpo.training.first_rank import on_first_rank
from nemo_rpo.training.logging import RunLog
from nemo_rpo.training.metrics import read_metrics
from nemo_rpo.training.results import ANNOTATOR_CSV
from nemo_rpo.training.setup import starting_point, tokenizer_folder
from nemo_rpo.training.summary import final_report
from nemo_rpo.training.trainer import RPOTrainer

_HF_FOLDER = "hf"


def drop_results(folder: Path, fresh: bool) -> None:
    """Removes what an earlier end left in the run's ``folder`` and this start will make again. Collective.

    The export goes before the first step, so that one that is there is always of the run's last step. A run that starts
    afresh drops the table of annotators too: it may learn none.
    """

    def drop() -> None:
        shutil.rmtree(folder / _HF_FOLDER, ignore_errors=True)
        if fresh:
            (folder / ANNOTATOR_CSV).unlink(missing_ok=True)

    on_first_rank(drop)


def finish(cfg: RunConfig, trainer: RPOTrainer, log: RunLog) -> None:
    """Writes what a finished run leaves, where it is not there yet, and prints the closing report. Collective.

    Raises:
        CheckpointError: the export cannot be written.
    """
    files = [trainer.folder / "config.yaml", *log.files]
    rows = []
    if cfg.model.rpo.enabled:
        rows = trainer.annotators.rows()
        files.append(trainer.annotators.write())  # a run that was killed after its last checkpoint has an older one
    checkpoint = trainer.store.latest()
    if checkpoint is not None:
        files.append(checkpoint)
    if cfg.exp_manager.checkpoint_callback_params.save_hf_on_train_end:
        files.append(_export(cfg, trainer))
    log.close()
    if dist.get_rank() == 0:
        print_on_first_rank("\n" + final_report(rows, read_metrics(trainer.folder), files))


def _export(cfg: RunConfig, trainer: RPOTrainer) -> Path:
    folder = trainer.folder / _HF_FOLDER
    if not on_first_rank(folder.exists):
        source = starting_point(cfg)
        config = read_hf_config(source) if source and (source / "config.json").exists() else None
        export_hf(trainer.model.model, trainer.model.architecture, folder, tokenizer_folder(cfg), config)
        dist.barrier()
    return folder
