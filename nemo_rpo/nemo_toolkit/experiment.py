"""NeMo's ``exp_manager`` in a run of ours: its log files and the loggers that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rpo.errors import ConfigError, MissingExtraError, first_line, missing_extra

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

# exp_manager moves every file of the folder it is given into run_0, run_1, … at each start. metrics.jsonl goes on
# through a resume and .lock is held by the job at work, so it is given a folder of its own inside the run's.
FOLDER = "nemo"
# Of exp_manager's keys, those that need nothing of Lightning's loop. Its checkpoints, timers and callbacks belong to
# Trainer.fit, which never runs; the engine checkpoints, resumes and watches the clock by the same keys.
HANDED_OVER = (
    "create_tensorboard_logger",
    "summary_writer_kwargs",
    "create_wandb_logger",
    "wandb_logger_kwargs",
    "create_mlflow_logger",
    "mlflow_logger_kwargs",
    "create_dllogger_logger",
    "dllogger_logger_kwargs",
    "create_clearml_logger",
    "clearml_logger_kwargs",
    "create_neptune_logger",
    "neptune_logger_kwargs",
    "files_to_copy",
)


def loggers_of(settings: Mapping[str, Any], run_dir: Path, resume_step: int | None) -> list[Logger]:
    """The Lightning loggers that ``exp_manager`` makes, after it has done the rest of its work in ``run_dir/nemo``.

    For global rank 0: the others would only sleep there (``seconds_to_sleep``), so they never come. No collectives.

    Args:
        settings: ``exp_manager`` of the YAML file, with a value for each key of :data:`HANDED_OVER`.
        resume_step: the step of the checkpoint resumed from; TensorBoard then hides what came after it.

    Raises:
        MissingExtraError: a package that NeMo or the logger imports is not installed.
        ConfigError: what ``exp_manager`` says of its settings.
    """
    try:
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment
        from nemo.utils.exp_manager import exp_manager
    except ImportError as exc:
        raise missing_extra(exc.name or "nemo_toolkit", "nemo") from exc
    # NeMo takes an empty mapping of MLflow's arguments, say, for a mistake.
    handed = {key: settings[key] for key in HANDED_OVER if settings[key] or isinstance(settings[key], bool)}
    if resume_step is not None:
        handed["summary_writer_kwargs"] = {"purge_step": resume_step + 1, **settings["summary_writer_kwargs"]}
    # One process that trains nothing, whatever torchrun's environment says of the ranks.
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    held_back = {
        "explicit_log_dir": str(run_dir / FOLDER),
        "resume_if_exists": False,
        "create_checkpoint_callback": False,
        "disable_validation_on_resume": False,
        "log_step_timing": False,
        "log_tflops_per_sec_per_gpu": False,
    }
    try:
        exp_manager(trainer, {**held_back, **handed})
        for logger in trainer.loggers:
            # Made when it is first asked for: here, where its mistakes are answered.
            getattr(logger, "experiment", None)
    except ImportError as exc:
        raise MissingExtraError(f"exp_manager of nemo-toolkit: {first_line(exc)}") from exc
    except (ValueError, TypeError, OSError) as exc:
        raise ConfigError(f"exp_manager of nemo-toolkit: {first_line(exc)}") from exc
    return trainer.loggers
