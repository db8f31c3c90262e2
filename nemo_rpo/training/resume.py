"""Going on from a checkpoint: which one, whether it is of this run, and how the run stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_rpo.config.fingerprint import config_fingerprint, fingerprint_differences
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.em import AnnotatorReliability, RecordedReliability
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.adapter.description import LORA
from nemo_rpo.megatron.checkpoint.run_file import check_format, read_run
from nemo_rpo.training.checkpoints import ANNOTATOR_FILE, CheckpointStore
from nemo_rpo.training.origin import NOTHING
from nemo_rpo.training.trainer import RPOTrainer

_OR_ANOTHER = "or give exp_manager.explicit_log_dir another folder for a new run"


def checkpoint_to_resume(cfg: RunConfig, store: CheckpointStore) -> Path | None:
    """The checkpoint that the run goes on from; None starts afresh. Collective.

    Raises:
        CheckpointError: there is none and there has to be; it is damaged, or was trained with other settings.
    """
    manager = cfg.exp_manager
    if not manager.resume_if_exists:
        return None
    found = store.latest()
    if found is None and not manager.resume_ignore_no_checkpoint:
        raise CheckpointError(
            f"no checkpoint in {store.folder}: set exp_manager.resume_ignore_no_checkpoint=true to start a new run"
        )
    if found is not None:
        run = read_run(found)
        check_format(found, run)
        differences = fingerprint_differences(run["config"], config_fingerprint(cfg))
        if differences:
            raise CheckpointError(
                f"{found} was trained with other settings: {'; '.join(differences)}: set them back, {_OR_ANOTHER}"
            )
        if (LORA in run) != cfg.model.peft.lora:
            what = "adapters alone" if LORA in run else "all weights"
            raise CheckpointError(f"{found} holds {what}: set model.peft.peft_scheme back, {_OR_ANOTHER}")
    return found


def take_annotators(cfg: RunConfig, checkpoint: Path, cache: PreferenceCache) -> None:
    """Gives every annotator of ``cache`` the index that the checkpoint knows them by.

    Raises:
        CheckpointError: the checkpoint has lost its table.
        DataError: an annotator is new, and ``model.data.allow_new_annotators`` is off.
    """
    try:
        saved = AnnotatorTable.load(checkpoint / ANNOTATOR_FILE)
    except (OSError, ValueError, TypeError) as exc:
        raise CheckpointError(
            f"{checkpoint / ANNOTATOR_FILE} cannot be read ({exc}): restore it, or move {checkpoint} away to go on "
            "from the checkpoint before it"
        ) from exc
    cache.use_annotators(saved.extended(cache.annotators, allow_new=cfg.model.data.allow_new_annotators))


def check_origin(cfg: RunConfig, checkpoint: Path, origin: dict[str, str]) -> None:
    """Compares what the checkpoint was made from with :func:`nemo_rpo.training.origin.origin_of` of this start.

    Raises:
        CheckpointError: other pairs, labels, starting weights, adapter, reference, previous iterate or reliabilities to
            start from.
    """
    saved = read_run(checkpoint)["origin"]
    if saved["weights"] != origin["weights"]:
        raise CheckpointError(
            f"{checkpoint} was not trained from the weights in {cfg.pretrained_checkpoint.restore_from_path}, which "
            f"its reference needs: set pretrained_checkpoint.restore_from_path to those, {_OR_ANOTHER}"
        )
    for key, trained in (
        ("reference_from", "against another reference than"),
        ("previous_iterate", "against another previous iterate than"),
        ("believe_from", "from other reliabilities than those of"),
    ):
        if saved.get(key, NOTHING) != origin[key]:  # a run of an earlier version had none
            raise CheckpointError(
                f"{checkpoint} was trained {trained} model.rpo.{key}={getattr(cfg.model.rpo, key)}: "
                f"set it back, {_OR_ANOTHER}"
            )
    if saved.get("adapter", NOTHING) != origin["adapter"]:
        raise CheckpointError(
            f"{checkpoint} was trained from another adapter than model.peft.restore_from_path="
            f"{cfg.model.peft.restore_from_path}: set it back, {_OR_ANOTHER}"
        )
    # The margin buffer knows pairs by their place in the data; running reliabilities know annotators only.
    may_change = cfg.model.data.allow_new_annotators and cfg.model.rpo.estimator == AnnotatorReliability.estimator
    if saved["data"] != origin["data"] and not may_change:
        raise CheckpointError(
            f"{checkpoint} was trained on other data or with another tokenizer: set model.data.data_prefix.train to "
            f"the same pairs and labels, {_OR_ANOTHER}"
        )


def take_up(trainer: RPOTrainer, run: dict[str, Any]) -> None:
    """Restores the trainer's own state from ``run``, the ``run.json`` of the checkpoint that the model came from."""
    trainer.step, trainer.val_metrics = run["step"], run["metrics"]
    trainer.skipped_in_a_row = run.get("skipped_in_a_row", 0)
    trainer.annotators.take_up(run)
    em = trainer.model.em
    if isinstance(em, RecordedReliability) and run["origin"]["data"] != trainer.origin["data"]:
        em.pairs.forget()  # it knows pairs by their place
