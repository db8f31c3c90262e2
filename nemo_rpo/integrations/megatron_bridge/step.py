"""The functor that Megatron-Bridge calls for every micro-batch: this package's loss, and the evidence for η.

Shapes: n pairs of a micro-batch, K annotators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from megatron.bridge.training.state import GlobalState
from megatron.bridge.training.utils.flop_utils import accumulate_flops_metadata
from megatron.core.num_microbatches_calculator import get_num_microbatches
from torch import Tensor

from nemo_rpo.config.loss import pair_step
from nemo_rpo.config.schema import DPOConfig, ModelConfig, RPOConfig
from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.em import AnnotatorReliability, PairLosses, agreement, label_loss
from nemo_rpo.errors import ConfigError
from nemo_rpo.integrations.megatron_bridge.model import score
from nemo_rpo.integrations.megatron_bridge.reference import ReferenceLogprobs
from nemo_rpo.integrations.rpo_block import dpo_config, log_prob_loss, rpo_config
from nemo_rpo.losses import COLUMNS, PairLogprobs
from nemo_rpo.losses.reduction import Mean
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.megatron.step.forward import MicroBatch, ModelInput, pair_logprobs, response_figures, votes_of

_USED = ("reference", "logprob_head")  # settings of the engine that mean the same here
# What the data may carry beside log-probs; π_t of the losses that compare with an earlier round is the reference.
_COLUMNS = {"base_logps"} | {name for name, column in COLUMNS.items() if column.source == "row"}


class RPOForwardStep:
    """``forward_step_func`` of ``finetune``, together with ``RPOCallback(step)``.

    A step's loss is the mean over the pairs of its *global* batch. In evaluation (``model.training`` is False) η is
    used and nothing is learnt.

    Args:
        rpo: the settings of ``model.rpo`` (a mapping or :class:`RPOConfig`), ``annotator_key``, the field of the data
            that has an annotator's id (None: there are no ids), and ``allow_new_annotators`` (on resume).
        dpo: the settings of ``model.dpo``: ``ref_policy_kl_penalty`` (β), ``preference_loss``, ``sft_loss_weight``, …

    Attributes:
        loss: the base loss.
        em: the reliabilities; annotators: who stands behind each; data: fingerprint of the training pairs. None until
            ``finetune`` has opened the data.
        reference: None for losses without one.

    Raises:
        ConfigError: an unknown setting, or a loss that needs more than log-probs and columns of the data.
    """

    def __init__(
        self, rpo: RPOConfig | Mapping[str, Any] | None = None, dpo: DPOConfig | Mapping[str, Any] | None = None
    ) -> None:
        self.rpo, self.dpo = rpo_config(rpo, "rpo", used=_USED), dpo_config(dpo, "dpo")
        self.loss = log_prob_loss(self.rpo, self.dpo, "rpo", columns=_COLUMNS)
        if not isinstance(self.loss.reduction, Mean):
            raise ConfigError(
                f"rpo.base_loss={self.loss.name} weighs every pair by the whole global batch, which no micro-batch "
                "here has: choose another loss, or train with this package's own engine"
            )
        if self.rpo.reference == "cached":
            raise ConfigError("rpo.reference=cached needs this package's own engine: set swapped or resident")
        self.pair_step = pair_step(self.loss, self.dpo, self.rpo)
        self.needs_reference = StepNeeds.of(self.loss, ModelConfig(rpo=self.rpo, dpo=self.dpo)).reference
        self.em: AnnotatorReliability | None = None
        self.annotators: AnnotatorTable | None = None
        self.data: str | None = None
        self.reference: ReferenceLogprobs | None = None
        self._seen = 0  # micro-batches of the pass under way

    @property
    def reliabilities(self) -> dict[str, float]:
        """η of every annotator by id."""
        return dict(zip(self.annotators.ids, self.em.eta.tolist(), strict=True))

    def __call__(
        self,
        state: GlobalState,
        data_iterator: Iterator[MicroBatch],
        model: torch.nn.Module,
        return_schedule_plan: bool = False,
    ) -> tuple[Tensor, Callable]:
        if self.em is None:
            raise ConfigError("pass RPOCallback(step) in the callbacks of finetune, with the step that it gets")
        if return_schedule_plan:
            raise ConfigError("there are no schedule plans of pairs: set model.overlap_moe_expert_parallel_comm=false")

        def receive(logps: Tensor, x: ModelInput, batch: MicroBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            return self.loss_func(logps, x, batch, model.training)

        iterator = _counting_flops(data_iterator, state, getattr(model, "vp_stage", None))
        return score(iterator, model, receive)

    def loss_func(
        self, logps: Tensor, x: ModelInput, batch: MicroBatch, training: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss summed over the micro-batch's pairs, their number, and metrics as Bridge sums them up.

        Megatron-Core divides by the number, and averages over micro-batches and ranks, which all hold as many. No
        collective, no wait for the device.
        """
        if self.reference is not None:
            batch = self.reference.add_to(batch)
        pairs = pair_logprobs(batch, response_figures({"logps": logps}, x), default_margin=None)
        valid = batch["valid"]
        if training:
            self._begin_pass()
        votes, em = votes_of(batch), self.em if self.rpo.enabled else None
        losses = self.pair_step(
            pairs,
            votes,
            valid,
            em=em if training else None,  # held-out labels are a measure: taken at their word
            learn_from=batch["pair_index"] if training else None,
        )
        if not training:
            losses = replace(losses, loss=label_loss(losses.delta, votes))
            losses = losses if em is None else replace(losses, w=em.posterior(losses.delta, votes))
        count = valid.sum()
        sums = {
            name: torch.stack((torch.where(valid, value.detach().float(), 0.0).sum(), count.float()))
            for name, value in self._metrics(pairs, losses, votes.better()).items()
        }
        if self.rpo.enabled:  # one element: the same on all ranks, and not summed over them
            sums |= {"em/eta_mean": self.em.eta.mean().float(), "em/eta_min": self.em.eta.min().float()}
        return losses.objective.sum(), count.int(), sums

    def _metrics(self, x: PairLogprobs, losses: PairLosses, better: Tensor) -> dict[str, Tensor]:
        """What is logged of each pair, [n], under the engine's names (:class:`nemo_rpo.megatron.step.metrics`)."""
        rewards = x.log_ratios() if self.reference is not None else x.policy()
        return {
            "loss": losses.loss,
            "preference_loss": losses.preference,
            **({"sft_loss": losses.sft} if self.dpo.sft_loss_weight else {}),
            "acc": agreement(losses.delta, better),
            "margin": better * losses.delta,
            "rewards_chosen_mean": rewards[0],
            "rewards_rejected_mean": rewards[1],
            "em/posterior_mean": losses.w,
            "em/frac_flipped": losses.w < 0.5,
            "em/abs_delta_mean": losses.delta.abs(),
        }

    def _begin_pass(self) -> None:
        """Counts micro-batches; after the last of a pass, one more is the first of a replay, and the evidence starts
        anew. Bridge's rerun state machine replays a step's pass without telling its callbacks.
        """
        if self._seen == get_num_microbatches():
            self.forget_step()
        self._seen += 1

    def forget_step(self) -> None:
        """Drops the evidence of the step under way."""
        self.em.rollback()
        self._seen = 0


def _counting_flops(iterator: Iterator[MicroBatch], state: GlobalState, vp_stage: int | None) -> Iterator[MicroBatch]:
    batch = next(iterator)
    both = torch.empty(2 * len(batch["chosen"]), batch["chosen"].shape[1], device="meta")  # only its shape counts
    accumulate_flops_metadata(state, both, vp_stage=vp_stage)
    return iter((batch,))
