"""TRL's ``DPOTrainer`` with the package's losses and EM.

TRL's own ``_compute_loss`` still runs, for its forward pass and its metrics; the loss that is back-propagated is
computed from the log-probs that passed through it. Shapes: n pairs of a micro-batch, chosen first; K annotators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from nemo_rpo.config.loss import pair_step
from nemo_rpo.config.schema import DPOConfig as LossSettings
from nemo_rpo.config.schema import RPOConfig
from nemo_rpo.em import AnnotatorReliability, BufferedReliability, SweepResult, build_estimator, label_loss
from nemo_rpo.integrations.em_state import continued, load_state, packed, restore, save_state
from nemo_rpo.integrations.rpo_block import log_prob_loss, rpo_config
from nemo_rpo.integrations.trl.callback import EMCallback, sweep_reliabilities
from nemo_rpo.integrations.trl.collectives import over_processes
from nemo_rpo.integrations.trl.data import (
    LABEL_KEYS,
    PAIR_INDEX,
    SIGN,
    Labels,
    VoteCollator,
    data_fingerprint,
    labelled_pairs,
    take_labels,
    with_pair_index,
)
from nemo_rpo.integrations.trl.forward_pass import forward, response_logps
from nemo_rpo.integrations.trl.host import (
    REFERENCE_IS_GIVEN,
    check_args,
    check_loss,
    check_processes,
    check_version,
    scale_no_loss,
)
from nemo_rpo.losses import PairLogprobs

_SUMS = ("em/posterior_mean", "em/frac_flipped", "em/abs_delta_mean")


class RPOTrainer(DPOTrainer):
    """``DPOTrainer`` that believes each annotator as far as the data allow.

    The loss of a step is the mean over the valid pairs of its *global* batch, whatever the processes, the micro-batches
    and the last batch of an epoch; η moves once per optimizer step, from the sums over all of them, and only if the
    optimizer took the step. Evaluation uses η and never moves it. Logged beside TRL's metrics: ``em/…``.

    Args:
        model, ref_model, args, data_collator, train_dataset: as ``DPOTrainer``'s. β is ``args.beta``.
        rpo: the settings of ``model.rpo`` (a mapping or :class:`RPOConfig`), with ``annotator_key``, the column of
            ``train_dataset`` that has an annotator's id, or a list of ids with their signs in ``annotator_sign``.
        kwargs: ``DPOTrainer``'s further arguments.

    Attributes:
        em: the reliabilities. annotators: who stands behind each. loss: the base loss.

    Raises:
        ConfigError: an unknown setting; a loss that needs more than log-probs; an option of ``DPOConfig`` that names
            another loss; a layout other than data parallel.
        DataError: the training data has no such column, or a row leaves it empty.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        *,
        rpo: RPOConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_version()
        self.rpo = rpo_config(rpo, "rpo", sweeps=True)
        beta = check_args(args, self.rpo)
        loss_settings = LossSettings(ref_policy_kl_penalty=beta)
        self.loss = log_prob_loss(self.rpo, loss_settings, "rpo")
        check_loss(self.loss)
        self.pair_step = pair_step(self.loss, loss_settings, self.rpo)
        key = self.rpo.annotator_key if self.rpo.enabled else None
        self._pairs = labelled_pairs(train_dataset, key)
        self.annotators = self._pairs.table()
        keeps_margins = self.rpo.enabled and self.rpo.estimator == BufferedReliability.estimator
        self._fingerprint = data_fingerprint(train_dataset, key) if keeps_margins else None
        super().__init__(model, ref_model, args, data_collator, with_pair_index(train_dataset), **kwargs)
        scale_no_loss(self)
        check_processes(self.accelerator)
        if self.loss.reference_free:
            self.ref_model = None  # loaded by TRL all the same, and not used
        self.data_collator = VoteCollator(self.data_collator, self.annotators, key)
        self.collectives = over_processes(self.accelerator)
        self.em = self._new_em()
        # Pairs, w, flipped, |Δ| of this process in the step under way.
        self._sums = torch.zeros(1 + len(_SUMS), dtype=torch.float64, device=self.accelerator.device)
        self._pairs_in_step: Tensor | None = None
        self.add_callback(EMCallback(self))

    @property
    def reliabilities(self) -> dict[str, float]:
        """η of every annotator by id."""
        return dict(zip(self.annotators.ids, self.em.eta.tolist(), strict=True))

    def _new_em(self) -> AnnotatorReliability:
        return build_estimator(
            self.rpo,
            len(self.annotators),
            len(self._pairs),
            partial(self._pairs.votes_of, self.annotators),
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.collectives,
            self.accelerator.device,
            partial(self._pairs.crowd, self.annotators),
        )

    # --- the batch

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        ours = (self.rpo.annotator_key, SIGN, PAIR_INDEX)
        self._signature_columns += [column for column in ours if column not in (None, *self._signature_columns)]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """The micro-batches of a step, and its valid pairs over all processes (one all-reduce of 8 bytes)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.accelerator.gradient_state.end_of_dataloader:
            self.mask_repeats(batches[-1])
        pairs = torch.stack([batch["valid"].sum() for batch in batches]).sum().to(device) if batches else 0
        return batches, self.accelerator.reduce(torch.as_tensor(pairs, device=device), "sum")

    def mask_repeats(self, batch: dict[str, Any]) -> None:
        """Marks the rows of an epoch's last batch that fill it up as not valid.

        Accelerate repeats the first rows of the data, so that all processes have as many; they have counted already.
        """
        size, processes = len(batch["valid"]), self.accelerator.num_processes
        real = len(self.train_dataset) % (size * processes)
        filled_up = self.accelerator.even_batches and not self.args.dataloader_drop_last
        if processes > 1 and real and filled_up:
            place = torch.arange(size, device=batch["valid"].device) + size * self.accelerator.process_index
            batch["valid"] &= place < real

    # --- the loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """TRL's, which hands over the number of pairs of the step."""
        self._pairs_in_step = num_items_in_batch
        return super().compute_loss(model, inputs, return_outputs)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        inputs, labels = take_labels(inputs)
        inputs = self._with_reference(inputs)
        forward = _FirstOutput(model)
        with self._reference_in_batch():
            stock = super()._compute_loss(forward, inputs, return_outputs)
        objective = self._pair_objectives(self._scored(forward.output, inputs), labels)
        pairs, share = labels.valid.sum(), 1.0
        if self.model.training and self._pairs_in_step is not None:
            # DDP averages gradients over processes, and the micro-batches of a step are summed.
            share = pairs * self.accelerator.num_processes / self._pairs_in_step.clamp(min=1)
        loss = objective.sum() / pairs.clamp(min=1)
        if getattr(self, "aux_loss_enabled", False):  # of mixtures of experts, since TRL 1.8
            loss = loss + self.router_aux_loss_coef * forward.output.aux_loss
        return (loss * share, stock[1]) if return_outputs else loss * share

    def _pair_objectives(self, x: PairLogprobs, labels: Labels) -> Tensor:
        """The robust loss of each pair [n], 0 where not valid; in training its evidence is added to the step's. In
        evaluation −log σ(Δ) of the recorded labels, which no w weighs. No collective.
        """
        if not self.model.training:
            delta = self.loss.terms(x).delta
            return torch.where(labels.valid, label_loss(delta, labels.votes), 0.0)
        em, learn_from = self.em if self.rpo.enabled else None, labels.pair
        losses = self.pair_step(x, labels.votes, labels.valid, em, learn_from)
        w = losses.w
        rows = torch.stack((torch.ones_like(w), w, (w < 0.5).float(), losses.delta.abs())).double()
        self._sums += torch.where(labels.valid, rows, 0.0).sum(-1)
        return losses.objective

    def _scored(self, output: Any, inputs: Mapping[str, Tensor]) -> PairLogprobs:
        reference = (inputs["ref_chosen_logps"].float(), inputs["ref_rejected_logps"].float())
        lengths = inputs["completion_mask"][:, 1:].sum(-1)
        return PairLogprobs(*response_logps(output, inputs).chunk(2), *reference, *lengths.chunk(2))

    def pair_logprobs(self, model: Any, inputs: dict[str, Any]) -> PairLogprobs:
        """A batch as a loss sees it, [n]; collectives of the model alone."""
        inputs = self._with_reference(inputs)
        return self._scored(forward(model, inputs), inputs)

    # --- the reference

    def compute_ref_log_probs(self, *model_and_inputs: Any) -> tuple[Tensor, Tensor]:
        """TRL's, without the columns that it does not know."""
        *model, inputs = model_and_inputs  # the batch alone before TRL 1.9
        return super().compute_ref_log_probs(*model, {k: v for k, v in inputs.items() if k not in LABEL_KEYS})

    def _with_reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with the reference's log-probs, where it has none yet; zeros for losses without a reference."""
        if "ref_chosen_logps" in inputs:
            return inputs
        if self.loss.reference_free:
            nothing = torch.zeros(len(inputs["input_ids"]) // 2, device=inputs["input_ids"].device)
            return inputs | {"ref_chosen_logps": nothing, "ref_rejected_logps": nothing}
        model = [self.ref_model or self.model] if REFERENCE_IS_GIVEN else []
        chosen, rejected = self.compute_ref_log_probs(*model, inputs)
        return inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    @contextlib.contextmanager
    def _reference_in_batch(self) -> Iterator[None]:
        """Inside the block TRL takes the reference from the batch, as it does where it has precomputed it."""
        before, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            yield
        finally:
            self.precompute_ref_logps = before

    # --- the M-step

    def forget_step(self) -> None:
        """Drops the evidence of the step under way."""
        self.em.rollback()
        self._sums.zero_()

    def finish_em_step(self) -> None:
        """Commits the step's evidence if the optimizer took the step.

        One all-reduce of 32 bytes and, under ``ema``, 16 K more; under ``buffer`` a gather of 12 bytes a pair, and now
        and then the collectives of a refit.
        """
        if not self.rpo.enabled or self.accelerator.optimizer_step_was_skipped:
            return self.forget_step()
        packed = torch.cat((self.em.pending.flatten(), self._sums))
        self.collectives.all_reduce(packed)
        self.em.pending.copy_(packed[: -len(self._sums)].view_as(self.em.pending))
        pairs, *sums = packed[-len(self._sums) :].tolist()
        self.em.exchange(self.collectives.gather_rows)
        self.em.commit()
        self._sums.zero_()
        for name, value in zip(_SUMS, sums, strict=True):
            self._metrics["train"][name].append(value / max(pairs, 1.0))
        return self._log_eta()

    def _log_eta(self) -> None:
        # TRL logs means over the steps since it last logged; of η the present value is wanted.
        mean, least = torch.stack((self.em.eta.mean(), self.em.eta.min())).tolist()
        self._metrics["train"] |= {"em/eta_mean": [mean], "em/eta_min": [least]}
        if self.em.estimate is not None:
            self._metrics["train"]["em/information"] = [self.em.estimate.information]

    def settle(self) -> None:
        """Takes in what the steps since the last refit have brought; under ``ema`` there is nothing to do."""
        if self.rpo.enabled:
            self.em.settle()
            self._log_eta()

    def sweep(self) -> SweepResult:
        """The exact full-batch EM over ``train_dataset`` at the present weights; its η replaces the running one."""
        before = self.em.eta
        found = sweep_reliabilities(self)
        moved = (self.em.eta - before).abs().mean().item()
        self._log_eta()
        self.log({"em/eta_moved": moved, "em/iterations": found.iterations, "em/converged": float(found.converged)})
        return found

    # --- the checkpoint

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.rpo.enabled:
            saved = packed(self.em, self.annotators, self._fingerprint)
            if self.args.should_save:
                save_state(Path(output_dir), saved)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.rpo.enabled:
            return
        saved, state = load_state(Path(checkpoint))
        self.annotators = continued(saved, self.annotators, self.rpo.allow_new_annotators, "rpo")
        self.em = self._new_em()
        restore(self.em, state, self._fingerprint, "rpo")
        self.data_collator.annotators = self.annotators


class _FirstOutput:
    """Calls a model, and keeps what the first call returned: the policy's forward pass inside TRL's loss."""

    def __init__(self, model: Any) -> None:
        self.model, self.output = model, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        self.output = self.output if self.output is not None else output
        return output
