"""The end of a run: the policy as it is handed on, the tables of annotators, labels and held-out pairs, and the closing
report.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.distributed as dist

from nemo_rpo.config.load import print_on_first_rank
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.splits import VALIDATION
from nemo_rpo.training.logs.metrics import read_metrics
from nemo_rpo.training.logs.run_log import RunLog
from nemo_rpo.training.outputs import exports, record
from nemo_rpo.training.outputs.results import ANNOTATOR_CSV, LABEL_MODEL_JSON
from nemo_rpo.training.outputs.summary import final_report
from nemo_rpo.training.process.rank0 import on_first_rank
from nemo_rpo.training.sweep import margins
from nemo_rpo.training.trainer import RPOTrainer


def drop_results(folder: Path, fresh: bool) -> None:
    """Removes what an earlier end left in the run's ``folder`` and this start will make again. Collective.

    The export and the held-out margins go before the first step, so that those that are there are always of the run's
    last step. A run that starts afresh drops the tables of annotators and labels too: it may learn none.
    """

    def drop() -> None:
        exports.drop(folder)
        (folder / record.VALIDATION).unlink(missing_ok=True)
        if fresh:
            for name in (ANNOTATOR_CSV, LABEL_MODEL_JSON, record.ANNOTATORS, record.POSTERIORS):
                (folder / name).unlink(missing_ok=True)

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
        # A run that was killed after its last checkpoint has older ones.
        files += trainer.annotators.write(trainer.step)
    if cfg.model.rpo.record and trainer.validation_splits:
        files.append(_held_out(trainer))
    checkpoint = trainer.store.latest()
    if checkpoint is not None:
        files.append(checkpoint)
    files += exports.write(cfg, trainer.model, trainer.folder)
    log.close()
    if dist.get_rank() == 0:
        print_on_first_rank("\n" + final_report(rows, read_metrics(trainer.folder), files, trainer.folder))


def _held_out(trainer: RPOTrainer) -> Path:
    path, found = trainer.folder / record.VALIDATION, {}
    if not on_first_rank(path.exists):
        for split in trainer.validation_splits:
            cache = trainer.splits[split].cache
            with trainer.model.evaluating():
                delta = margins(trainer.model, trainer.validation_batches(split)).everywhere(len(cache))
            found[split.removeprefix(VALIDATION).removeprefix("/")] = cache, delta.cpu().numpy()
        on_first_rank(partial(record.write_validation, trainer.folder, trainer.step, found))
    return path
