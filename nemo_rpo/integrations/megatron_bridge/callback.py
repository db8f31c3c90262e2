"""When the reference runs and when η moves: the places in Megatron-Bridge's loop, and what is done there."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches

from nemo_rpo.errors import CheckpointError
from nemo_rpo.integrations.em_state import continued, load_state, restore
from nemo_rpo.integrations.megatron_bridge.checkpoint import RPOCheckpointManager, manager_of
from nemo_rpo.integrations.megatron_bridge.data import PreferencePairs
from nemo_rpo.integrations.megatron_bridge.host import check_config
from nemo_rpo.integrations.megatron_bridge.model import take_over_head
from nemo_rpo.integrations.megatron_bridge.reference import ReferenceLogprobs
from nemo_rpo.integrations.megatron_bridge.step import RPOForwardStep
from nemo_rpo.megatron.step.collectives import gather_step_rows, reduce_to_all_ranks
from nemo_rpo.megatron.step.em import estimator_of


class RPOCallback(Callback):
    """The M-step with the optimizer's step, and the reference before it; to be passed with the ``step`` it serves.

    η moves once per optimizer step, from sums over all micro-batches and data-parallel ranks, and not with a skipped
    iteration; evaluation never moves it.

    Raises:
        ConfigError: a setting of Bridge under which the numbers would be wrong, by its name.
        DataError: the training data name no annotators, or on resume others than the checkpoint.
        CheckpointError: a run is resumed whose checkpoint has no state of the EM.
    """

    def __init__(self, step: RPOForwardStep) -> None:
        self.step = step
        self._pairs: dict[str, PreferencePairs] = {}

    def on_data_init_start(self, context: CallbackContext) -> None:
        """Between the weights and the data: opens the pairs, restores η, sets up the reference."""
        cfg, step = context.state.cfg, self.step
        manager = manager_of(context.state)
        check_config(cfg, step, manager)
        take_over_head(context.model, cfg.model.vocab_size, step.rpo.logprob_head)
        step.reference = self._reference(context, manager) if step.needs_reference else None
        manager.start = None  # its host memory is free again, unless it is the reference
        key = step.rpo.annotator_key if step.rpo.enabled else None
        caches = cfg.dataset.open(cfg, key, keep_ties=step.loss.takes_ties)
        train, table, state = caches["train"], caches["train"].annotators, None
        if step.rpo.enabled and manager.resumed_from is not None:
            saved, state = load_state(manager.resumed_from)
            table = continued(saved, table, step.rpo.allow_new_annotators, "rpo")
            train.use_annotators(table, unknown=0 if key is None else None)
        if "validation" in caches:
            caches["validation"].use_annotators(table, unknown=0 if key is None else len(table))
        step.annotators = table
        device = next(context.model[0].parameters()).device
        step.em, step.data = estimator_of(step.rpo, train, device), train.fingerprint()
        if state is not None:
            restore(step.em, state, step.data, "rpo")
        self._pairs = cfg.dataset.use(cfg, caches)
        manager.step = step

    def _reference(self, context: CallbackContext, manager: RPOCheckpointManager) -> ReferenceLogprobs:
        cfg, rpo = context.state.cfg, self.step.rpo
        if manager.resumed_from is not None and manager.start is None:
            raise CheckpointError(
                "a resumed run needs the weights it began with as its reference: set checkpoint.pretrained_checkpoint"
            )
        resident = None
        if rpo.reference == "resident":

            def resident() -> list[Any]:
                model = cfg.model.provide_distributed_model(wrap_with_ddp=False)
                take_over_head(model, cfg.model.vocab_size, rpo.logprob_head)
                return model

        return ReferenceLogprobs(manager.reference(context.model, resident), swapped=resident is None)

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Drops what a failed step left, and runs the reference over the batch to come."""
        cfg, state = context.state.cfg, context.state.train_state
        self.step.forget_step()
        self._run_reference(
            context, "train", state.consumed_train_samples, get_num_microbatches(), cfg.train.micro_batch_size
        )

    def on_train_step_end(self, context: CallbackContext) -> None:
        """The M-step, unless the weights have stayed as they were.

        Collectives, each over the data-parallel group, and with several pipeline stages followed by one broadcast: with
        ``ema`` one all-reduce of 16 K bytes, with ``buffer`` one all-gather of 12 bytes a pair of the global batch, and
        those of a refit where one is due.
        """
        step, norm = self.step, context.grad_norm
        if not step.rpo.enabled:
            return
        if context.skipped_iter or (norm is not None and not math.isfinite(norm)):
            step.forget_step()
            return
        share = get_num_microbatches() * context.state.cfg.train.micro_batch_size
        step.em.reduce(reduce_to_all_ranks)
        step.em.exchange(partial(gather_step_rows, pairs=share * parallel_state.get_data_parallel_world_size()))
        step.em.commit()

    def on_train_end(self, context: CallbackContext) -> None:
        """η takes in what the steps since its last refit have brought, and is left beside the checkpoints, which are as
        they were: a run that trains on goes on from the last of them as if it had not ended.

        Not called where a run is stopped before its end. The collectives of
        :meth:`nemo_rpo.em.BufferedReliability.settle` and :func:`nemo_rpo.integrations.em_state.packed`.
        """
        manager = manager_of(context.state)
        if self.step.rpo.enabled:
            self.step.em.settle()
            manager.save_result()

    def on_eval_step_start(self, context: CallbackContext) -> None:
        """Runs the reference over the validation batch to come."""
        cfg = context.state.cfg.validation
        size = cfg.eval_micro_batch_size
        count = cfg.eval_global_batch_size // (size * parallel_state.get_data_parallel_world_size())
        self._run_reference(context, "validation", context.state.train_state.consumed_valid_samples, count, size)

    def _run_reference(self, context: CallbackContext, split: str, first: int, count: int, size: int) -> None:
        if self.step.reference is None:
            return
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        batches = list(self._pairs[split].micro_batches(first, count, size, rank, ranks))
        self.step.reference.compute(context.model, batches)
