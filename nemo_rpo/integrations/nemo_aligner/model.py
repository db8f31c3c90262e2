"""NeMo-Aligner's DPO model with the package's losses and EM.

Upstream runs the forward passes, the pipeline schedule and the reference; what it computes from the log-probs of a
micro-batch is replaced. Shapes: n pairs of a micro-batch, chosen first; K annotators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches
from nemo_aligner.data.nlp.datasets import DPOPackedDataset
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from torch import Tensor

from nemo_rpo.config.loss import pair_step
from nemo_rpo.em import AnnotatorReliability, Votes, build_estimator
from nemo_rpo.errors import DataError
from nemo_rpo.integrations.em_state import continued, packed, restore, unpacked
from nemo_rpo.integrations.nemo_aligner.aligner_settings import BLOCK, base_loss, dpo_settings, rpo_settings
from nemo_rpo.integrations.nemo_aligner.data import NO_PAIR, TrainingLabels
from nemo_rpo.losses import PairLogprobs
from nemo_rpo.losses.reduction import Mean
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.step.collectives import (
    gather_step_rows,
    largest_on_all_ranks,
    reduce_to_all_ranks,
    sum_over_data_parallel,
)
from nemo_rpo.megatron.step.em import COLLECTIVES
from nemo_rpo.megatron.step.metrics import StepMetrics

_STATE = "nemo_rpo"  # key of the EM's state in a checkpoint


class _Labels(NamedTuple):
    """Who labelled the pairs of the micro-batch whose loss is being computed, [n] each.

    ``pair_index`` is None where nothing is to be learnt from them.
    """

    annotator: Tensor
    valid: Tensor
    pair_index: Tensor | None


class MegatronGPTRPOModel(MegatronGPTDPOModel):
    """``MegatronGPTDPOModel`` that believes each annotator as far as the data allow.

    The loss of a step is the mean over the valid pairs of its *global* batch, whatever the micro-batches and ranks. η
    is fixed inside a step; evidence is summed over data-parallel ranks and sent to all pipeline stages with the
    metrics, and :meth:`finish_em_step` commits it. With ``model.rpo.enabled=false`` it is the plain base loss.

    Attributes:
        rpo: the block ``model.rpo``. base_loss: the preference loss.
        em, labels: reliabilities, and who labelled which pair, from :meth:`connect_labels` on.

    Raises:
        ConfigError: an unknown setting of the block, or a loss that needs more than log-probs and rewards.
    """

    em: AnnotatorReliability
    labels: TrainingLabels
    _held_out = False  # the batch under way measures: its labels are taken at their word

    def __init__(self, cfg: Any, trainer: Any) -> None:
        loss = base_loss(cfg)  # before minutes are spent on the weights
        super().__init__(cfg, trainer)
        self.base_loss, self.rpo = loss, rpo_settings(cfg)
        self.pair_step = pair_step(loss, dpo_settings(cfg), self.rpo)
        # The superclass weighs its two terms and adds them up; here loss_func returns the sum.
        self.preference_loss_weight, self.sft_loss_weight = 1.0, 0.0
        self.step_metrics = StepMetrics(self.base_loss.reduction, torch.cuda.current_device())
        self.restored: dict[str, Any] | None = None
        self._labels: _Labels | None = None

    def connect_labels(self, labels: TrainingLabels) -> None:
        """Starts the EM over the labels of the training data, or continues it where a checkpoint was restored.

        Raises:
            DataError: the data has annotators that the checkpoint lacks (``model.rpo.allow_new_annotators``).
            CheckpointError: the checkpoint holds margins of other pairs.
        """
        if self.restored is not None:
            saved, state = unpacked(self.restored)
            annotators = continued(saved, labels.annotators, self.rpo.allow_new_annotators, BLOCK)
            labels = replace(labels, annotators=annotators)
        self.labels = labels
        self.em = build_estimator(
            self.rpo,
            len(labels.annotators),
            len(labels.pairs),
            labels.votes,
            parallel.data_parallel_rank(),
            parallel.data_parallel_size(),
            COLLECTIVES,
            torch.cuda.current_device(),
            partial(labels.pairs.crowd, labels.annotators),
        )
        if self.restored is not None:
            restore(self.em, state, labels.fingerprint, BLOCK)

    # --- one micro-batch

    def get_forward_output_and_loss_func(self, validation_step: bool = False, logprobs_only: bool = False) -> Callable:
        """Upstream's, which on later pipeline stages drops what it does not know: the labels go round it."""
        forward = super().get_forward_output_and_loss_func(validation_step, logprobs_only)
        learns = self.rpo.enabled and not validation_step

        def fwd_output_and_loss_func(dataloader_iter: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Callable]:
            batch = next(dataloader_iter)
            keys = ("annotator", "valid", "pair_index")
            annotator, valid, pair_index = (batch.pop(key).flatten().cuda(non_blocking=True) for key in keys)
            output, upstream_func = forward(iter([batch]), *args, **kwargs)

            def output_func(*args: Any, **kwargs: Any) -> Any:
                self._labels = _Labels(annotator, valid, pair_index if learns else None)
                return upstream_func(*args, **kwargs)

            return output, output_func

        return fwd_output_and_loss_func

    def loss_func(
        self,
        pi_logprobs: Tensor,
        ref_logprobs: Tensor,
        labels: Tensor,
        gt_rewards: Tensor,
        cu_seqlens: Tensor | None = None,
        average_log_probs: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the step's loss [], and 0 instead of the accuracy, which is among the metrics.

        Args:
            pi_logprobs, ref_logprobs, labels: [2n, S] or, of a pack, [1, S]. gt_rewards: [2n] or [1, 2P], padded.
            cu_seqlens: boundaries in a pack.
            average_log_probs: the base loss knows it by its own option.
        """
        x = self._pair_logprobs(pi_logprobs, ref_logprobs, labels, gt_rewards, cu_seqlens)
        annotator, valid, pair_index = (None if of is None else of[: len(x)] for of in self._labels)
        votes, em = Votes.single(annotator), self.em if self.rpo.enabled else None
        losses = self.pair_step(x, votes, valid, em=None if self._held_out else em, learn_from=pair_index)
        if self._held_out and em is not None:
            losses = replace(losses, w=em.posterior(losses.delta, votes))  # for the metrics alone
        self.step_metrics.add(x, losses, votes)
        share = losses.objective.sum() * self._scale
        return share, torch.zeros_like(share)

    def _pair_logprobs(
        self, policy: Tensor, reference: Tensor, labels: Tensor, gt_rewards: Tensor, cu_seqlens: Tensor | None
    ) -> PairLogprobs:
        def halves(of_tokens: Tensor) -> tuple[Tensor, Tensor]:
            return self.split_output_tensor(self.get_reduced_masked_logps(of_tokens, labels, cu_seqlens))

        if cu_seqlens is None:
            chosen_reward, rejected_reward = self.split_output_tensor(gt_rewards)
        else:
            rewards = gt_rewards[gt_rewards != DPOPackedDataset.REWARDS_PAD_ID].float()
            chosen_reward, rejected_reward = rewards[::2], rewards[1::2]
        return PairLogprobs(
            *halves(policy),
            *((None, None) if self.base_loss.reference_free else halves(reference)),
            *halves(torch.ones_like(policy)),
            pair_columns={"margin": chosen_reward - rejected_reward},
        )

    # --- one global batch

    def get_loss_and_metrics(self, batch: dict[str, Tensor], forward_only: bool) -> tuple[float, dict[str, float]]:
        """Upstream's passes over the batch; loss and metrics of the *global* batch, the same on every rank.

        Collectives beside upstream's: one all-reduce of 8 bytes (pairs, strangers) over the data-parallel group,
        :func:`reduce_to_all_ranks` over metrics and evidence, and in training with the margin buffer
        :func:`_gather_rows`, 12 bytes a pair. A loss that is no mean of pairs (Dr. DPO) costs a forward pass more, for
        the statistic that its gradient is divided by.

        Raises:
            DataError: a pair to be trained on is not in the training files, or names no annotator of theirs; on every
                rank, whichever holds it.
        """
        self._held_out = forward_only
        strangers = self._strangers(batch).sum() if self.rpo.enabled and not forward_only else torch.tensor(0)
        counts = torch.stack((batch["valid"].sum(), strangers.to(batch["valid"].device))).float().cuda()
        sum_over_data_parallel(counts)
        if strangers := int(counts[1]):
            raise DataError(
                f"{strangers} pairs to be trained on are not among the {len(self.labels.pairs)} labelled ones that the "
                f"trainer was given: pass training_labels of the same files and {BLOCK}.annotator_key"
            )
        pairs = counts[0]
        # Megatron divides by the micro-batches, data-parallel ranks average their gradients: both are undone here.
        scale = get_num_microbatches() * parallel_state.get_data_parallel_world_size() / pairs.clamp(min=1)
        if not forward_only and not isinstance(self.base_loss.reduction, Mean) and pairs > 0:
            self._pass_over(batch, scale, forward_only=True)
            scale = scale * self.step_metrics.gradient_scale()
        self._pass_over(batch, scale, forward_only)
        # Switched off, the figures are NeMo-Aligner's own.
        metrics = self.step_metrics.means(held_out=forward_only and self.rpo.enabled)
        return metrics["loss"], metrics

    def _pass_over(self, batch: dict[str, Tensor], scale: Tensor, forward_only: bool) -> None:
        self.step_metrics.reset()
        self._scale = scale
        super().get_loss_and_metrics(batch, forward_only)
        reduce_to_all_ranks(self.step_metrics.sums, self.em.pending)
        if self.rpo.enabled and not forward_only:
            self.em.exchange(partial(_gather_rows, places=batch["pair_index"].numel()))

    def _strangers(self, batch: dict[str, Tensor]) -> Tensor:
        """Which pairs, bool [n], are to be trained on though nothing is known of their labels."""
        unknown = (batch["annotator"] >= len(self.labels.annotators)) | (batch["pair_index"] == NO_PAIR)
        return unknown & batch["valid"]

    def get_ref_policy_logprobs(self, batch: dict[str, Tensor]) -> Tensor:
        """Upstream's; zeros, without a pass, for losses without a reference."""
        if not self.base_loss.reference_free:
            return super().get_ref_policy_logprobs(batch)
        if "input_ids" in batch:
            return torch.zeros_like(batch["input_ids"], dtype=torch.float32)
        return torch.zeros_like(torch.cat((batch["chosen"], batch["rejected"])), dtype=torch.float32)

    # --- around a step

    def prepare_for_training_step(self) -> None:
        """Upstream's; drops what a step that failed has left of its evidence."""
        super().prepare_for_training_step()
        self.em.rollback()

    def finish_em_step(self, updated: bool) -> dict[str, float]:
        """The M-step, to be called once the optimizer has taken the step (or not: then η stays); metrics of η."""
        if not self.rpo.enabled:
            return {}
        if updated:
            self.em.commit()
        else:
            self.em.rollback()
        mean, least = torch.stack((self.em.eta.mean(), self.em.eta.min())).tolist()
        return {"em/eta_mean": mean, "em/eta_min": least}

    # --- the checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Upstream's, with the EM's state among what all ranks share. Collective, see
        :func:`nemo_rpo.integrations.em_state.packed`.
        """
        super().on_save_checkpoint(checkpoint)
        if self.rpo.enabled:
            saved = packed(self.em, self.labels.annotators, self.labels.fingerprint)
            if "margins" in saved:  # as bits: Megatron compares what ranks share, and NaN is not NaN
                saved["margins"] = saved["margins"].view(torch.int32)
            checkpoint[_STATE] = saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Upstream's; the EM's state waits in ``restored`` for :meth:`connect_labels`."""
        self.restored = checkpoint.get(_STATE)
        if self.restored is not None and "margins" in self.restored:
            self.restored = self.restored | {"margins": self.restored["margins"].cpu().view(torch.float32)}
        super().on_load_checkpoint(checkpoint)


def _gather_rows(rows: Tensor, places: int) -> Tensor:
    """:func:`gather_step_rows` where packs hold more or fewer pairs: rows of no pair fill those of every rank up to the
    most ``places`` that one has for its share of the batch. One all-reduce of 8 bytes more; waits for the device.
    """
    most = int(largest_on_all_ranks(torch.tensor(places, dtype=torch.float64, device=rows.device)))
    filled = torch.nn.functional.pad(rows, (0, 0, 0, most - len(rows)), value=NO_PAIR)
    return gather_step_rows(filled, most * parallel_state.get_data_parallel_world_size())
