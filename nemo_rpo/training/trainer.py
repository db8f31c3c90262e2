"""The loop: train, sweep, validate, save, in that order after each step that asks for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from nemo_rpo.config.arithmetic.flops import step_flops
from nemo_rpo.config.fingerprint import config_fingerprint
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.config.splits import is_validation, metrics_split
from nemo_rpo.errors import TrainingError
from nemo_rpo.launch import COMMAND
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.megatron.parallel import world_size
from nemo_rpo.megatron.step.collectives import largest_on_all_ranks
from nemo_rpo.megatron.step.em import check_ranks_agree
from nemo_rpo.training.adapters.adapter_facts import described
from nemo_rpo.training.annotator_log import AnnotatorBook
from nemo_rpo.training.checkpoints import CheckpointStore
from nemo_rpo.training.data_of_run import Split
from nemo_rpo.training.logs.memory import peak_bytes
from nemo_rpo.training.logs.run_log import RunLog
from nemo_rpo.training.process.profiling import StepProfiler
from nemo_rpo.training.process.stop import STOPPED_EARLY, StopRequest
from nemo_rpo.training.reference.kl_to_start import KLToStart, too_far
from nemo_rpo.training.reference.source import Reference
from nemo_rpo.training.schedule import Schedule, batches_of

_RANKS_COMPARED_EVERY = 32  # steps; and before every checkpoint


class RPOTrainer:
    """Trains ``model`` to the end of ``schedule``; ``origin`` (what it is made from) goes into every checkpoint."""

    def __init__(
        self,
        cfg: RunConfig,
        model: MegatronGPTRPOModel,
        splits: dict[str, Split],
        references: dict[str, Reference],
        schedule: Schedule,
        store: CheckpointStore,
        log: RunLog,
        folder: Path,
        origin: dict[str, str],
        stop: StopRequest,
    ) -> None:
        self.cfg, self.model, self.splits, self.references = cfg, model, splits, references
        self.schedule, self.store, self.log, self.folder = schedule, store, log, folder
        self.origin, self.stop = origin, stop
        self.step = 0  # optimizer steps done
        self.annotators = AnnotatorBook(model, splits["train"].cache, folder, log)
        self.val_metrics: dict[str, float] = {}
        self.skipped_in_a_row = 0
        self.profiler = StepProfiler(cfg.model, folder)

    def fit(self) -> bool:
        """Runs to the end; returns False if ``stop`` ended it before, after a checkpoint.

        Raises:
            TrainingError: on every rank; the run has diverged, and what there is has been saved, or its ranks hold
                different reliabilities.
        """
        steps = range(self.step + 1, 1 + (self.step if self.too_far() else self.schedule.total_steps))
        if not steps and self._has_diverged(self.step):  # started again, where there is nothing left to make it good
            raise self._divergence(self.step)
        batches = self.splits["train"].dataset.batches(map(self.schedule.data_step, steps))
        self.stop.stepping = True
        for step, batch in zip(steps, batches, strict=True):
            with self.profiler.step(step):
                self.train_single_step(step, batch)
            if self._has_diverged(step):
                self.save(step)
                self._say_saved(self.store.finish(wait=True))
                raise self._divergence(step)
            if step == self.schedule.total_steps and self.cfg.model.rpo.enabled:
                self.model.em.settle()
            self.annotators.note_refit(step)
            if step % _RANKS_COMPARED_EVERY == 0 or self.schedule.saves(step):
                check_ranks_agree(self.model.em)
            if self.sweeps(step):
                self.annotators.sweep(step, self._batches("sweep", len(self.splits["sweep"].dataset)))
            if step == self.schedule.total_steps:
                self.annotators.look_back()
            if self.schedule.validates(step):
                self.run_validation(step)
            if far := self.too_far():
                self._end_here(step, far)
                break
            reason = self.stop.reason(self.model.device)
            if self.schedule.saves(step) or reason:
                self.save(step)
            else:
                self._say_saved(self.store.finish(wait=False))
            if reason and step < self.schedule.total_steps:
                self._say_saved(self.store.finish(wait=True))
                self.log.note(
                    f"stopped at step {step}: {reason}; start again to go on{_by_what()} (status {STOPPED_EARLY})"
                )
                return False
        self._say_saved(self.store.finish(wait=True))
        self.stop.stepping = False
        return True

    def too_far(self) -> str | None:
        """Why the run ends at its last validation, before its last step; None if it does not."""
        return too_far(self.cfg.model.rpo.stop_kl, self.val_metrics)

    def _end_here(self, step: int, why: str) -> None:
        """What the end of a run brings, before its last step."""
        if self.cfg.model.rpo.enabled and step < self.schedule.total_steps:
            self.model.em.settle()
            self.annotators.note_refit(step)
            if self.cfg.model.rpo.sweep != "none" and not self.sweeps(step):
                self.annotators.sweep(step, self._batches("sweep", len(self.splits["sweep"].dataset)))
        self.save(step)
        self.log.note(f"ended at step {step} of {self.schedule.total_steps}: {why}")

    def train_single_step(self, step: int, batch: Batch) -> None:
        """One optimizer step and its line in ``metrics.jsonl``."""
        began = time.perf_counter()
        self.references["train"].add_ref_policy_logprobs(batch)
        self.model.prepare_for_training_step()
        _, metrics = self.model.get_loss_and_metrics(batch, forward_only=False)
        outcome = self.model.finish_training_step()
        self.skipped_in_a_row = 0 if outcome.updated else self.skipped_in_a_row + 1
        if not outcome.updated:
            self.log.note(
                f"step {step} skipped: the gradient norm is {outcome.grad_norm}; weights and reliabilities stay as "
                "they were"
            )
        metrics |= {
            "grad_norm": outcome.grad_norm,
            "lr": self.model.learning_rate,
            "skipped": float(not outcome.updated),
            **self.annotators.metrics(),
        }
        metrics |= {"epoch": self.schedule.epoch(step), "consumed_samples": step * self.cfg.model.global_batch_size}
        self.step = step
        seconds, pairs = time.perf_counter() - began, self.cfg.model.global_batch_size
        self.log.train(
            step,
            metrics,
            seconds=seconds,
            pairs=pairs,
            **self._work(step),
        )

    def _work(self, step: int) -> dict[str, float]:
        """The work of a step: its tokens, model FLOPs of a device, and the most memory that any device has held so
        far.

        Collectives: an all-reduce of 8 bytes over the world.
        """
        needs = self.model.needs
        lengths, scored = self.splits["train"].lengths(self.schedule.data_step(step))
        frozen = needs.live_reference + needs.previous_iterate + needs.further_forwards
        flops = step_flops(
            self.model.architecture, lengths, scored, frozen, head=needs.logps, adapters=self.cfg.model.peft.lora
        )
        memory = torch.full((1,), peak_bytes(self.model.device), dtype=torch.float64, device=self.model.device)
        return {
            "tokens": int(lengths.sum()),
            "flops": flops / world_size(),
            "memory": largest_on_all_ranks(memory),
        }

    def _has_diverged(self, step: int) -> bool:
        """Whether too many steps in a row were skipped, or all steps of the run."""
        skipped, total = self.skipped_in_a_row, self.schedule.total_steps
        return skipped >= self.cfg.trainer.dpo.max_skipped_steps or skipped == step == total

    def _divergence(self, step: int) -> TrainingError:
        return TrainingError(
            f"the run has diverged: the gradient was no finite number in the last {self.skipped_in_a_row} steps, up to "
            f"step {step}, and the weights have not moved since. They are saved; start a new run with a lower "
            "model.optim.lr or longer warm-up, or raise trainer.dpo.max_skipped_steps to go on from here"
        )

    def sweeps(self, step: int) -> bool:
        """Whether the exact full-batch EM runs after ``step``."""
        when = self.cfg.model.rpo.sweep if self.cfg.model.rpo.enabled else "none"
        return (when != "none" and step == self.schedule.total_steps) or (
            when == "epoch" and self.schedule.ends_epoch(step)
        )

    def run_validation(self, step: int) -> None:
        """Loss and metrics over each set of validation pairs; the EM learns nothing from them. Under ``val_…`` without
        a name stand those of the first set.
        """
        measured: dict[str, float] = {}
        for split in self.validation_splits:
            self.model.prepare_for_validation_step()
            for batch in self.validation_batches(split):
                self.model.validation_forward(batch)
            metrics, called = self.model.finish_validation_step(), metrics_split(split)
            if self.model.first is not None:
                metrics |= KLToStart(self.model, self.model.first).of(self._held_out(split))
            names = {called} if measured else {"val", called}
            measured |= {f"{name}_{metric}": value for name in names for metric, value in metrics.items()}
            self.log.record(called, step, metrics)
        if measured:
            self.val_metrics = measured

    @property
    def validation_splits(self) -> list[str]:
        """``validation``, or ``validation/NAME`` of each named set; none without validation data."""
        return list(filter(is_validation, self.splits))

    def validation_batches(self, split: str) -> Iterator[Batch]:
        """Those that a validation looks at, with their reference log-probs."""
        return self._batches(split, self._looked_at(split))

    def _held_out(self, split: str) -> Iterator[Batch]:
        """The same batches, without reference log-probs."""
        return self.splits[split].dataset.batches(range(self._looked_at(split)))

    def _looked_at(self, split: str) -> int:
        return batches_of(self.cfg.trainer.dpo.limit_val_batches, len(self.splits[split].dataset))

    def _batches(self, split: str, count: int) -> Iterator[Batch]:
        for batch in self.splits[split].dataset.batches(range(count)):
            self.references[split].add_ref_policy_logprobs(batch)
            yield batch

    def save(self, step: int) -> None:
        """A checkpoint, with everything that a resumed run needs to go on as if it had not stopped."""
        run = {
            "step": step,
            "consumed_samples": step * self.cfg.model.global_batch_size,
            "metrics": self.val_metrics,
            "config": config_fingerprint(self.cfg),
            "origin": self.origin,
            "skipped_in_a_row": self.skipped_in_a_row,
            **described(self.cfg, self.model.architecture, self.origin),
            **self.annotators.state(),
        }
        whole = self.store.save(self.model, self.splits["train"].cache.annotators, run)
        if self.cfg.model.rpo.enabled:
            self.annotators.write(step)
        self._say_saved(whole)

    def _say_saved(self, checkpoints: list[Path]) -> None:
        for path in checkpoints:
            self.log.note(f"saved {path}")


def _by_what() -> str:
    command = os.environ.get(COMMAND)
    return f": {command}" if command else " with the same command"
