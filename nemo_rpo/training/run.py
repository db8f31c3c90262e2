"""One training run, from a checked configuration to its files. Called on every rank."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.config.load import config_to_yaml, print_on_first_rank
from nemo_rpo.config.places import run_folder
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.splits import is_validation, metrics_split
from nemo_rpo.config.validate import time_limit
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError
from nemo_rpo.training.process.accelerator import use_accelerator

if TYPE_CHECKING:
    import torch

    from nemo_rpo.training.process.stop import StopRequest


def train(cfg: RunConfig) -> int:
    """Trains as ``cfg`` says, from the latest checkpoint of its folder if there is one. Collective over the world.

    Returns the exit status: 0 at the end of the run, :data:`nemo_rpo.training.process.stop.STOPPED_EARLY` if a signal
    or its time limit stopped it before, after a checkpoint.

    Leaves in the run's folder: ``config.yaml``, ``metrics.jsonl``, ``annotators.csv``, ``checkpoints/``, the record
    (:mod:`nemo_rpo.training.outputs.record`) and, at the end, the policy as ``hf/`` (Hugging Face) and ``policy.nemo``.

    Raises:
        RPOError: anything the user can mend, before the first step wherever it can be known.
    """
    started = time.monotonic()
    use_accelerator(cfg)
    from nemo_rpo.megatron import parallel
    from nemo_rpo.training.process.run_lock import claimed
    from nemo_rpo.training.process.stop import STOPPED_EARLY, StopRequest

    with StopRequest(started, time_limit(cfg)) as stop:
        device = parallel.initialize(cfg)
        folder = run_folder(cfg)
        with claimed(folder):
            ended = _train_in(folder, cfg, device, stop)
        parallel.finalize()
    return 0 if ended else STOPPED_EARLY


def _train_in(folder: Path, cfg: RunConfig, device: torch.device, stop: StopRequest) -> bool:
    """Returns whether the run came to its end."""
    from nemo_rpo.training import data_of_run, resume, setup
    from nemo_rpo.training.beliefs import read_beliefs
    from nemo_rpo.training.checkpoints import CheckpointStore
    from nemo_rpo.training.day_of_run import record_date
    from nemo_rpo.training.end_of_run import drop_results, finish
    from nemo_rpo.training.logs.run_log import RunLog
    from nemo_rpo.training.logs.start import log_start
    from nemo_rpo.training.origin import origin_of
    from nemo_rpo.training.outputs import exports
    from nemo_rpo.training.process.rank0 import on_first_rank
    from nemo_rpo.training.reference.kl_to_start import too_far
    from nemo_rpo.training.reference.source import find_references
    from nemo_rpo.training.reference.step0 import check_step0
    from nemo_rpo.training.schedule import Schedule
    from nemo_rpo.training.trainer import RPOTrainer

    store = CheckpointStore(folder / "checkpoints", cfg.exp_manager)
    checkpoint = resume.checkpoint_to_resume(cfg, store)
    setup.check_start(cfg)
    record_date(folder, data_of_run.tokenizer_spec(cfg), fresh=checkpoint is None)
    splits = data_of_run.open_splits(cfg)
    cache = splits["train"].cache
    if checkpoint is not None:
        resume.take_annotators(cfg, checkpoint, cache)
    validated = list(filter(is_validation, splits))
    for name in validated:
        splits[name].cache.use_annotators(cache.annotators, unknown=len(cache.annotators))
    setup.check_groups(cfg, cache)
    beliefs = read_beliefs(cfg.model.rpo.believe_from)
    origin = origin_of(cfg, cache, None if beliefs is None else beliefs.fingerprint())
    if checkpoint is not None:
        resume.check_origin(cfg, checkpoint, origin)
    schedule = Schedule.of(cfg.trainer.dpo, len(splits["train"].dataset))
    architecture = setup.architecture_for(cfg, cache)
    exports.check(cfg, architecture)
    belief = None if beliefs is None else beliefs.about(cache.annotators, cfg.model.rpo)
    model = setup.build_model(cfg, architecture, cache, schedule.total_steps, device, belief)
    if validated:
        named = {"val", *map(metrics_split, validated)}
        store.check_monitor(f"{split}_{name}" for split in named for name in model.metrics.means())
    references = find_references(cfg, model, splits)

    log_start(cfg, model, splits, schedule, beliefs, checkpoint)
    if checkpoint is not None:
        run = store.load(checkpoint, model)
    else:
        run = None
        batch = splits["train"].dataset.global_batch(schedule.data_step(1))
        references["train"].add_ref_policy_logprobs(batch)
        check_step0(model, batch, cfg)
        store.start_over()
    first_step = run["step"] if run else None
    far = run and too_far(cfg.model.rpo.stop_kl, run["metrics"])
    if first_step is None or (first_step < schedule.total_steps and not far):
        drop_results(folder, fresh=run is None)
    else:
        print_on_first_rank(_complete(folder, first_step, far))
    on_first_rank(partial(_write_config, cfg, folder))
    with RunLog(cfg, folder, schedule.total_steps, first_step) as log:
        trainer = RPOTrainer(cfg, model, splits, references, schedule, store, log, folder, origin, stop)
        if run is not None:
            resume.take_up(trainer, run)
        ended = trainer.fit()
        if ended:
            finish(cfg, trainer, log)
    return ended


def _complete(folder: Path, step: int, far: str | None) -> str:
    if far:
        return f"this run is complete: it ended at step {step:,}, where {far}; raise that to train on"
    return (
        f"this run is complete: {folder} has its last step, {step:,}, and nothing is trained now. To train on raise "
        "trainer.dpo.max_epochs or max_steps; for a new run give exp_manager.explicit_log_dir another folder"
    )


def _write_config(cfg: RunConfig, folder: Path) -> None:
    with whole_file(folder / "config.yaml", ConfigError, "see that its disk has room and start again") as writing:
        writing.write_text(config_to_yaml(cfg), encoding="utf-8")
