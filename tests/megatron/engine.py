"""The engine as a run has it, for scripts that step it by hand on their ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.validate import validate_config, validate_parallel

if TYPE_CHECKING:
    from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
    from nemo_rpo.megatron.optim.optimizer import StepOutcome
    from nemo_rpo.training.data_of_run import Split
    from nemo_rpo.training.reference.source import Reference

CONFIG = Path(__file__).with_name("tiny.yaml")


def places(world: Path, folder: Path, train: str = "train.jsonl") -> list[str]:
    """The overrides that name the files of a run in a :mod:`tiny_world`."""
    return [
        f"pretrained_checkpoint.restore_from_path={world / 'model'}",
        f"model.data.data_prefix.train={world / train}",
        f"exp_manager.explicit_log_dir={folder}",
    ]


def config(overrides: Sequence[str]) -> RunConfig:
    """``tiny.yaml`` under ``overrides``, checked as the command checks it."""
    cfg = load_config(str(CONFIG), overrides, notify=lambda text: None)
    validate_config(cfg)
    validate_parallel(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    return cfg


@dataclass
class Engine:
    """Model, data and references of a run whose step 1 is still to come."""

    cfg: RunConfig
    model: MegatronGPTRPOModel
    splits: dict[str, Split]
    references: dict[str, Reference]

    def batch(self, step: int, split: str = "train") -> Batch:
        """This rank's share of global batch ``step`` (from 0), reference log-probs included."""
        batch = self.splits[split].dataset.global_batch(step)
        self.references[split].add_ref_policy_logprobs(batch)
        return batch

    def batches(self, split: str) -> Iterator[Batch]:
        """All of a split, once."""
        return (self.batch(step, split) for step in range(len(self.splits[split].dataset)))

    def train_step(self, batch: Batch) -> tuple[dict[str, float], StepOutcome]:
        """As :meth:`nemo_rpo.training.trainer.RPOTrainer.train_single_step` calls the engine."""
        self.model.prepare_for_training_step()
        _, metrics = self.model.get_loss_and_metrics(batch, forward_only=False)
        return metrics, self.model.finish_training_step()


@contextlib.contextmanager
def engine(overrides: Sequence[str]) -> Iterator[Engine]:
    """The engine of a run on these ranks, between ``initialize`` and ``finalize``."""
    cfg = config(overrides)
    from nemo_rpo.megatron import cpu

    cpu.install()
    from nemo_rpo.megatron import parallel
    from nemo_rpo.training import data_of_run, setup
    from nemo_rpo.training.reference.source import find_references
    from nemo_rpo.training.schedule import Schedule

    device = parallel.initialize(cfg)
    splits = data_of_run.open_splits(cfg)
    cache = splits["train"].cache
    if "validation" in splits:
        splits["validation"].cache.use_annotators(cache.annotators, unknown=len(cache.annotators))
    steps = Schedule.of(cfg.trainer.dpo, len(splits["train"].dataset)).total_steps
    architecture = setup.architecture_for(cfg, cache)
    model = setup.build_model(cfg, architecture, cache, steps, device)
    run = Engine(cfg, model, splits, find_references(cfg, model, splits))
    yield run
    parallel.finalize()
    vars(run).clear()  # the caller's name for it would keep the model until the next one is there
