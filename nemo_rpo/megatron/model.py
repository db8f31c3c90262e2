"""The engine: a Megatron GPT policy, its frozen reference, and the EM, behind the interface of NeMo-Aligner's
``MegatronGPTDPOModel``.

A training step, in order: reference log-probs of the global batch; forward and backward over its micro-batches, in
which the last pipeline stage computes posteriors with the η the step began with and adds up the evidence; one reduction
of that evidence; the optimizer step; and, only if the weights moved, the commit of η.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from megatron.core.utils import get_model_config
from torch import Tensor

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.loss import base_loss, pair_step
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.em import AnnotatorReliability, Votes
from nemo_rpo.losses import PairLogprobs
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.batch.head_outputs import FrozenPredictions, HeadOutputs, HeadRequest
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.megatron.frozen_policy import ReferencePolicy, evaluation_mode
from nemo_rpo.megatron.network.build import build_model_chunks
from nemo_rpo.megatron.network.lora.attachment import has_adapters, start_afresh
from nemo_rpo.megatron.network.lora.expert_adapter import finish_gradients
from nemo_rpo.megatron.network.precision import Precision
from nemo_rpo.megatron.optim.optimizer import (
    StepOutcome,
    build_optimizer,
    build_scheduler,
    guarded_step,
    wrap_data_parallel,
)
from nemo_rpo.megatron.step.collectives import gather_step_rows, reduce_to_all_ranks
from nemo_rpo.megatron.step.forward import (
    PREVIOUS_KEYS,
    REFERENCE_HIDDEN,
    REFERENCE_KEYS,
    REFERENCE_TURN_KEYS,
    MicroBatch,
    ModelInput,
    pair_logprobs,
    pairs_per_ranking,
    response_figures,
    votes_of,
)
from nemo_rpo.megatron.step.metrics import StepMetrics
from nemo_rpo.megatron.step.schedule import forward_step, run_batch
from nemo_rpo.megatron.weight_swap import overwritten

Batch = list[MicroBatch]
LoadWeights = Callable[[list[torch.nn.Module]], None]


class MegatronGPTRPOModel:
    """Policy, reference, optimizer and annotator reliabilities of one run, on this rank.

    A *batch* is this rank's share of a global batch: a list of micro-batches, of equal shape where a pipeline passes
    them on (:mod:`nemo_rpo.data.batches.padded`, :mod:`nemo_rpo.data.batches.packed`), on the CPU. It holds pairs, or
    rankings of up to K responses, each of which stands for K(K-1)/2 places for its pairs; a ranking counts once, as a
    pair does.

    Args:
        cfg: the run.
        architecture: the model's shape.
        em: the reliabilities of the annotators (:func:`nemo_rpo.megatron.step.em.build_reliability`).
        total_steps: optimizer steps of the run, for the schedule.
        device: this rank's device.
        load_weights: writes the initial weights into the model chunks (a Hugging Face folder or a checkpoint); None
            keeps the random ones.
        load_previous: writes the weights of the previous iterate, for losses that compare against an earlier policy
            other than the reference; under LoRA its adapters.
        load_reference: writes the reference's weights, under LoRA its adapters; None: they are the initial ones.
        load_first: writes those of π₀, which validations measure the distance from; None: the initial ones.
        load_adapters: under LoRA, writes the adapters to start from; None starts at the base.
    """

    def __init__(
        self,
        cfg: RunConfig,
        architecture: GPTArchitecture,
        em: AnnotatorReliability,
        total_steps: int,
        device: torch.device,
        load_weights: LoadWeights | None = None,
        load_previous: LoadWeights | None = None,
        load_reference: LoadWeights | None = None,
        load_first: LoadWeights | None = None,
        load_adapters: LoadWeights | None = None,
    ) -> None:
        self.cfg, self.architecture, self.device = cfg, architecture, device
        self.loss = base_loss(cfg.model)
        self.pair_step = pair_step(self.loss, cfg.model.dpo, cfg.model.rpo)
        self.em = em
        self.needs = StepNeeds.of(self.loss, cfg.model)
        self.metrics = StepMetrics(self.loss.reduction, device, self.needs.logps)
        policy_precision, self.frozen_precision = cfg.model.rpo.precisions()
        self.precision = Precision(policy_precision)
        chunks = build_model_chunks(architecture, cfg, self.precision)
        resident = None
        if cfg.model.reference_in_force == "resident":
            resident = partial(build_model_chunks, architecture, cfg, Precision(self.frozen_precision))
        in_frozen_precision = partial(self.precision.switched, self.frozen_precision)
        frozen = partial(ReferencePolicy, chunks, resident, around=in_frozen_precision)
        self.reference: ReferencePolicy | None = None
        self.previous: ReferencePolicy | None = None
        self.first: ReferencePolicy | None = None  # π₀, where the distance from it is measured
        at_first = partial(ReferencePolicy, chunks, None, keep_head=True, around=in_frozen_precision)
        self._load_reference = load_reference
        if load_first is not None:
            load_first(chunks)
            self.first = at_first()
            start_afresh(chunks)
        if load_previous is not None:  # loaded first: the policy's weights overwrite them below
            load_previous(chunks)
            self.previous = frozen()
            start_afresh(chunks)
        if load_reference is not None and self.needs.live_reference:
            load_reference(chunks)
            self.reference = frozen(keep_head=self.needs.kl)
            start_afresh(chunks)
        if load_weights is not None:
            load_weights(chunks)
        if load_adapters is not None:
            load_adapters(chunks)
        at_base = cfg.model.peft.lora and load_adapters is None
        if load_reference is None and self.needs.live_reference:
            self.reference = frozen(keep_head=self.needs.kl, without_adapters=at_base)
        if cfg.model.rpo.measures_kl and self.first is None:
            self.first = at_first(without_adapters=at_base)
        self.config = get_model_config(chunks[0])
        self.model = wrap_data_parallel(chunks, self.config, cfg)
        self.optimizer = build_optimizer(self.model, cfg)
        self.scheduler = build_scheduler(self.optimizer, cfg, total_steps)
        self._gather_is_due = False  # True after an optimizer step that updated only this rank's part of the weights
        self._connect_schedule()

    def _connect_schedule(self) -> None:
        """What Megatron's schedules call back: when to synchronise gradients, how to finish them.

        Not how to scale the loss: without fp16 there is no scale, and the optimizer's method on the model's
        configuration would create a reference cycle through autograd nodes, which Python's GC cannot collect.
        """
        config = self.config
        config.finalize_model_grads_func = finish_gradients
        one = len(self.model) == 1
        if self.cfg.model.optim.overlap_grad_sync:
            config.no_sync_func = self.model[0].no_sync if one else [chunk.no_sync for chunk in self.model]
            config.grad_sync_func = None if one else [chunk.start_grad_sync for chunk in self.model]
        if self.cfg.model.optim.overlap_param_sync:
            config.param_sync_func = (
                self.model[0].start_param_sync if one else [chunk.start_param_sync for chunk in self.model]
            )

    # --- one micro-batch

    def get_forward_output_and_loss_func(
        self, validation_step: bool = False, logprobs_only: bool = False, num_microbatches: int = 1
    ) -> Callable:
        """The function that Megatron's schedules call for each micro-batch: ``(iterator, model) -> (output, loss
        function)``.

        The loss function runs on the last stage: on log-probs alone it returns what :meth:`get_logprob_batch` does,
        else ``(loss, {})`` with the loss scaled so that micro-batches and data-parallel ranks add up to the mean over
        the valid pairs (rankings) of the global batch.
        """
        # Every training pair is valid (the sampler draws no others), so the global count is known without a collective.
        # Megatron divides by the micro-batches and DDP by its ranks; both are undone here.
        scale = num_microbatches * parallel.data_parallel_size() / self.cfg.model.global_batch_size

        def receive_loss(outputs: HeadOutputs, x: ModelInput, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            pairs = self.pair_logprobs(outputs, x, batch)
            loss = self.loss_func(pairs, batch, collect_evidence=not validation_step)
            return (loss * scale).sum(), {}

        if logprobs_only:
            return forward_step(self.device, lambda batch: HeadRequest(), _receive_logprobs)
        return forward_step(self.device, self.head_request, receive_loss)

    def head_request(self, batch: MicroBatch) -> HeadRequest:
        """What the head is to return for a micro-batch that holds the frozen policies' outputs already."""
        hidden = batch.get(REFERENCE_HIDDEN)  # present on the last stage only, which is also the only one that answers
        return HeadRequest(
            logps=self.needs.logps,
            kl=None if hidden is None else FrozenPredictions(hidden, self.reference.head),
            reward=bool(self.needs.reward_outputs),
        )

    def pair_logprobs(self, outputs: HeadOutputs, x: ModelInput, batch: MicroBatch) -> PairLogprobs:
        """The micro-batch as a loss sees it, see :func:`nemo_rpo.megatron.step.forward.pair_logprobs`."""
        figures = response_figures(outputs, x, by_turn=self.needs.turns)
        rewards = self.cfg.model.data.default_chosen_reward, self.cfg.model.data.default_rejected_reward
        default_margin = None if None in rewards else rewards[0] - rewards[1]
        if "group_weight" in self.loss.needs:
            figures["group_weight"] = (self._pair_weight(votes_of(batch)),) * 2
        return pair_logprobs(batch, figures, default_margin)

    def _pair_weight(self, votes: Votes) -> Tensor:
        """The weights of the pairs' annotators on the loss's groups, fp32 ``[pairs, groups]``; one group has all."""
        if self.loss.groups == 1:
            return torch.ones(len(votes.sign), 1, device=self.device)
        return self.em.pair_weight(votes)

    def loss_func(self, x: PairLogprobs, batch: MicroBatch, collect_evidence: bool) -> Tensor:
        """What each pair adds to the step's objective ``[pairs]``, see :class:`nemo_rpo.em.PairLosses`. Adds to the
        step's metrics and, in training, to the evidence; held-out labels are taken at their word.

        No collective, no wait for the device.
        """
        votes, em = votes_of(batch), self.em if self.cfg.model.rpo.enabled else None
        losses = self.pair_step(
            x,
            votes,
            batch["valid"],
            em=em if collect_evidence else None,
            learn_from=batch["pair_index"] if collect_evidence else None,
            ranking_size=batch.get("ranking_size"),
        )
        if not collect_evidence and em is not None:
            losses = replace(losses, w=em.posterior(losses.delta, votes))  # for the metrics alone
        self.metrics.add(x, losses, votes, gold=None if collect_evidence else batch["gold"])
        return losses.objective

    # --- one global batch

    def get_loss_and_metrics(self, batch: Batch, forward_only: bool) -> tuple[float, dict[str, float]]:
        """Forward (and, in training, backward) over the batch; loss and metrics of the *global* batch, the same on
        every rank.

        Collectives: the model's own, the gradient reduction, and :func:`reduce_to_all_ranks` over the EM's sums and the
        metrics; the margin buffer has no sums and issues :func:`gather_step_rows`.
        """
        if forward_only:
            self.prepare_for_validation_step()
            self.validation_forward(batch)
            metrics = self.finish_validation_step()
        else:
            run_batch(self.get_forward_output_and_loss_func(num_microbatches=len(batch)), batch, self.model, False)
            reduce_to_all_ranks(self.metrics.sums, self.em.pending)
            if self.cfg.model.rpo.enabled:  # else nothing was observed
                pairs = self.cfg.model.global_batch_size * pairs_per_ranking(batch[0])
                self.em.exchange(partial(gather_step_rows, pairs=pairs))
            metrics = self.metrics.means()
            if (scale := self.metrics.gradient_scale()) != 1.0:
                for chunk in self.model:
                    chunk.scale_gradients(scale)
        return metrics["loss"], metrics

    def validation_forward(self, batch: Batch) -> None:
        """Adds one batch to the metrics of the validation pass under way; the EM learns nothing.

        Collectives: the model's own, and :meth:`gather_weights`.
        """
        with self.evaluating():
            run_batch(self.get_forward_output_and_loss_func(validation_step=True), batch, self.model, forward_only=True)

    @torch.no_grad()
    def get_logprob_batch(self, batch: Batch, model: list[torch.nn.Module] | None = None) -> list[dict[str, Tensor]]:
        """Log-probs of both responses, one ``{"chosen", "rejected", "tokens"}`` a micro-batch, on last-stage ranks; an
        empty list on the others, which have no use for them.

        ``chosen`` and ``rejected`` are sums, fp32 ``[pairs]``; ``tokens`` those of the response tokens, all chosen
        responses in turn and then all rejected (of rankings the third, and so on).

        ``model``: the chunks to run, in evaluation mode already; None: the policy's, which are put into it.

        Collectives: the model's own, and, of the policy, :meth:`gather_weights`.
        """
        function = self.get_forward_output_and_loss_func(logprobs_only=True)
        with self.evaluating() if model is None else contextlib.nullcontext():
            return run_batch(function, batch, model or self.model, forward_only=True, collect_non_loss_data=True)

    @torch.no_grad()
    def get_pair_batch(self, batch: Batch) -> list[PairLogprobs]:
        """What the loss sees of each micro-batch, on last-stage ranks; an empty list on the others. The batch must hold
        the outputs of the frozen policies already (:meth:`add_ref_policy_logprobs`).

        Collectives: the model's own, and :meth:`gather_weights`.
        """
        function = forward_step(self.device, self.head_request, self.pair_logprobs)
        with self.evaluating():
            return run_batch(function, batch, self.model, forward_only=True, collect_non_loss_data=True)

    def get_ref_policy_logprobs(self, batch: Batch) -> list[dict[str, Tensor]]:
        """:meth:`get_logprob_batch` of the frozen reference."""
        assert self.reference is not None, "a loss without a reference or a cached one has no live reference"
        with self.reference.active(self.model) as model:
            return self.get_logprob_batch(batch, model)

    @contextlib.contextmanager
    def reference_in_place(self) -> Iterator[None]:
        """Inside the block the policy's chunks hold the reference's weights, read again from where they are; for
        log-probs that are computed once. Nothing happens where the reference is the start, which they are taken to
        hold.

        Collectives: those of loading weights.
        """
        if self._load_reference is None:
            yield
            return
        adapted = has_adapters(self.model)
        held = [of for chunk in self.model for of in chunk.parameters() if of.requires_grad or not adapted]
        with overwritten(held):
            self._load_reference(self.model)
            yield

    def add_ref_policy_logprobs(self, batch: Batch) -> None:
        """Adds to the batch, in place, what the loss compares with: log-probs of the frozen policies that run in each
        step (the reference and the previous iterate), the reference's predictions token by token, and where a loss
        compares with a mean log-ratio of the batch (:meth:`_add_reference_point`), that.
        """
        if self.reference is not None:
            self._ask_frozen(batch, self.reference, REFERENCE_KEYS, self.needs.turns, self.needs.kl)
        if self.previous is not None:
            self._ask_frozen(batch, self.previous, PREVIOUS_KEYS)
        if self.needs.reference_point is not None:
            self._add_reference_point(batch, self.needs.reference_point)

    @torch.no_grad()
    def _add_reference_point(self, batch: Batch, name: str) -> None:
        """Puts z, the mean log π/π_ref of the global batch, into the column ``name`` of each micro-batch ``[n]``: of
        its own completions, or, as ``mismatched_kl``, of ``batch.mismatched`` and at least 0, an estimate of
        KL(π ‖ π_ref). One number of all ranks and micro-batches, so that neither leaves a trace in the loss.

        The policy runs forward once more, over as many sequences as the batch has, and under ``mismatched_kl`` the
        reference too. Collectives: those forwards', and :func:`reduce_to_all_ranks` of two numbers.
        """
        rows = batch
        if name == "mismatched_kl":
            rows = batch.mismatched
            self._ask_frozen(rows, self.reference, REFERENCE_KEYS)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for micro_batch, logprobs in zip(
            rows, self.get_logprob_batch(rows), strict=False
        ):  # none before the last stage
            reference = (micro_batch[key].to(self.device) for key in REFERENCE_KEYS)
            policy = (logprobs["chosen"], logprobs["rejected"])
            ratio = sum(of - frozen for of, frozen in zip(policy, reference, strict=True)).double()
            valid = micro_batch["valid"].to(self.device)
            sums += torch.stack((torch.where(valid, ratio, 0.0).sum(), valid.sum()))
        reduce_to_all_ranks(sums)
        z = (sums[0] / sums[1]).float()
        for micro_batch in batch:
            micro_batch[name] = (z.clamp(min=0) if name == "mismatched_kl" else z).expand(len(micro_batch["valid"]))

    @torch.no_grad()
    def _ask_frozen(
        self, batch: Batch, frozen: ReferencePolicy, keys: tuple[str, str], turns: bool = False, hidden: bool = False
    ) -> None:
        def receive(outputs: HeadOutputs, x: ModelInput, on_device: MicroBatch) -> MicroBatch:
            figures = response_figures(outputs, x, by_turn=turns)
            found = dict(zip(keys, figures["logps"], strict=True))
            if turns:
                found |= zip(REFERENCE_TURN_KEYS, figures["turn_logps"], strict=True)
            return found | ({REFERENCE_HIDDEN: outputs["hidden"]} if hidden else {})

        function = forward_step(self.device, lambda on_device: HeadRequest(hidden=hidden), receive)
        with frozen.active(self.model) as model:
            found = run_batch(function, batch, model, forward_only=True, collect_non_loss_data=True)
        for micro_batch, entries in zip(batch, found, strict=False):  # none before the last stage
            micro_batch.update(entries)

    # --- around a step

    def prepare_for_training_step(self) -> None:
        """Clears gradients, metrics and the step's evidence; training mode."""
        for chunk in self.model:
            chunk.zero_grad_buffer()
            chunk.train()
        self.optimizer.zero_grad()
        self.metrics.reset()
        self.em.rollback()

    def finish_training_step(self) -> StepOutcome:
        """Advances the learning rate, steps the optimizer, and commits η with it.

        A step with a NaN or infinite gradient moves neither weights nor η.
        """
        self.scheduler.step(1)
        outcome = guarded_step(self.optimizer, self.cfg.trainer.dpo.gradient_clip_val)
        self._gather_is_due = self.cfg.model.optim.overlap_param_sync
        if outcome.updated and self.cfg.model.rpo.enabled:
            self.em.commit()
        else:
            self.em.rollback()
        return outcome

    def prepare_for_validation_step(self) -> None:
        """Metrics at zero. Any number of :meth:`validation_forward` may follow."""
        self.metrics.reset()

    def finish_validation_step(self) -> dict[str, float]:
        """The metrics over all batches since :meth:`prepare_for_validation_step`, the same on every rank.

        Collectives: :func:`reduce_to_all_ranks` over the metrics.
        """
        reduce_to_all_ranks(self.metrics.sums)
        return self.metrics.means(held_out=True)

    def gather_weights(self) -> None:
        """Gathers the policy's new weights. Call it before anything but a training step reads them: a checkpoint, an
        export, a measurement.

        Under ``overlap_param_sync`` an optimizer step updates only the part that this rank owns. The next training
        forward gathers the other parts; until then they are one step old.

        Collectives: under ``overlap_param_sync``, once after an optimizer step, an all-gather of the parameters over
        the data-parallel group; otherwise none.
        """
        if self._gather_is_due:
            for chunk in self.model:
                chunk.start_param_sync(force_sync=True)
            self._gather_is_due = False

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside the block the policy has gathered weights and no dropout; its previous mode is restored afterwards.

        Collectives: :meth:`gather_weights`.
        """
        self.gather_weights()
        with evaluation_mode(self.model):
            yield

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]


def _receive_logprobs(outputs: HeadOutputs, x: ModelInput, batch: MicroBatch) -> dict[str, Tensor]:
    chosen, rejected = response_figures(outputs, x)["logps"]
    return {"chosen": chosen, "rejected": rejected, "tokens": x.responses.of_all_ranks(outputs["logps"])}
