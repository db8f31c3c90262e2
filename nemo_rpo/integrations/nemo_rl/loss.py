"""The loss that NeMo-RL's workers run: the package's own, fed from a micro-batch, with reliabilities that travel in it.

Shapes: b rows of a micro-batch, chosen at even and rejected at odd places; n = b/2 pairs; S padded length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.config.loss import pair_step
from nemo_rpo.em import PairLosses, PairStep, Votes, agreement, label_loss
from nemo_rpo.errors import ConfigError
from nemo_rpo.integrations.nemo_rl.data import labelled_pairs
from nemo_rpo.integrations.nemo_rl.nemo_rl_settings import BLOCK, dpo_settings, entry, refuse_columns, robust_config
from nemo_rpo.integrations.rpo_block import HostedRPOConfig, log_prob_loss
from nemo_rpo.losses import PairLogprobs, PreferenceLoss
from nemo_rpo.losses.reduction import Mean

# What the policy's proxy adds to a batch, one value a row [B].
EVIDENCE = "pair_evidence"  # float32, log-odds that all but the policy gives the pair's chosen
VOICE = "em_voice"  # float32, what the policy's margin is multiplied with in the E-step; 0 where it is not believed
LABEL, SHARPNESS = "em_label", "em_sharpness"  # float32, q and u of the bounded loss
HELD_OUT = "em_held_out"  # bool, in evaluation alone: labels are taken at their word
PAIR = "em_pair"  # int64, index of the pair in the global batch
STATISTIC = "em_mean_statistic"  # float32, mean over the global batch of what the loss's reduction divides by
# What the loss returns beside upstream's metrics, one value a valid pair: its index, w, Δ, and its statistic. The proxy
# takes them out again.
VECTORS = ("em_pair", "em_posterior", "em_delta", "em_statistic")


def make_loss(dpo_config: Any, master_config: Any = None, train_dataset: Any = None) -> RobustLoss:
    """The loss of a ``dpo`` section with its block ``robust``, to be passed to ``dpo_train`` instead of ``setup``'s.

    Args:
        dpo_config: the section, a dictionary (v0.6.0) or a pydantic model (since v0.7.0).
        master_config: the whole configuration; its ``policy.megatron_cfg`` says whether workers hand over log-probs or
            compute them in a fused kernel.
        train_dataset: where given, every row must name its annotator.

    Raises:
        ConfigError: an unknown setting, one of ``data`` that nothing reads, or a loss that needs more than log-probs.
        DataError: the training data has no annotator, or not in every row.
    """
    robust, dpo = robust_config(dpo_config), dpo_settings(dpo_config)
    base = log_prob_loss(robust, dpo, BLOCK)
    refuse_columns(master_config)
    if train_dataset is not None and robust.enabled:
        labelled_pairs(train_dataset, robust.annotator_key)
    megatron = entry(entry(master_config, "policy"), "megatron_cfg") or {}
    enabled = bool(megatron.get("enabled", False))
    return RobustLoss(
        step=pair_step(base, dpo, robust),
        robust=robust,
        average_rewards=dpo.preference_average_log_probs,
        use_linear_ce_fusion=enabled and bool(megatron.get("use_linear_ce_fusion_loss", False)),
        use_fused_linear_logprobs=enabled and bool(megatron.get("use_fused_linear_logprobs", False)),
    )


@dataclass(frozen=True)
class CarriedReliability:
    """The E-step in a worker: what the driver has looked up for each pair came with the batch.

    Attributes:
        evidence, voice, label, sharpness: float32 [n], see :data:`EVIDENCE` and its neighbours.
    """

    evidence: Tensor
    voice: Tensor
    label: Tensor
    sharpness: Tensor

    def posterior(self, delta: Tensor, votes: Votes, pair: Tensor | None = None) -> Tensor:
        """w [n]; the driver has looked at ``votes`` and ``pair``."""
        dtype = torch.promote_types(delta.dtype, torch.float32)
        # where and not a product alone: a margin that is not believed may be infinite.
        said = torch.where(self.voice == 0, 0.0, delta.detach().to(dtype) * self.voice.to(dtype))
        return torch.sigmoid(said + self.evidence.to(dtype))

    def bounded(self, votes: Votes, pair: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q [n] and u [n] of :func:`nemo_rpo.em.objective.bounded_loss`."""
        return self.label, self.sharpness


@dataclass(frozen=True)
class RobustLoss:
    """Upstream's ``LossFunction``. It has no state and is pickled to every worker with every call.

    Attributes:
        step: the pair step, with upstream's weights of its terms; the SFT term goes to the response believed to be
            better. robust: the block ``dpo.robust``.
        average_rewards: rewards (in metrics) are per token.
        use_linear_ce_fusion, use_fused_linear_logprobs: workers read here whether what they hold are log-probs already;
            the first name up to v0.7.0, the second since.
    """

    step: PairStep
    robust: HostedRPOConfig
    average_rewards: bool = False
    use_linear_ce_fusion: bool = False
    use_fused_linear_logprobs: bool = False

    @property
    def base(self) -> PreferenceLoss:
        """The preference loss."""
        return self.step.loss

    @property
    def loss_type(self) -> Any:
        """Normalised by sequences, not by tokens."""
        from nemo_rl.algorithms.loss.interfaces import LossType

        return LossType.SEQUENCE_LEVEL

    @property
    def input_type(self) -> Any:
        """Workers hand over ``next_token_logprobs``."""
        from nemo_rl.algorithms.loss.interfaces import LossInputType

        return LossInputType.LOGPROB

    def __call__(
        self,
        next_token_logprobs: Tensor,
        data: Any,
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """This micro-batch's share of the global batch's loss, and its metrics.

        Args:
            next_token_logprobs: [b, S-1], of the token at t+1.
            data: the micro-batch: ``token_mask`` [b, S], ``sample_mask`` [b], ``reference_policy_logprobs`` [b, S]
                rolled left by one, and what :class:`RobustPolicy` added.
            global_valid_seqs: valid rows of the global batch; shares add up to the mean over its valid *pairs*.
            global_valid_toks: not needed.

        Returns:
            The loss [], and upstream's scalar metrics, each this micro-batch's share of the global mean, with float64
            vectors over its valid pairs: what upstream does to metrics on their way (a division in place) is open to
            float arrays alone.
        """
        x = self._pair_logprobs(next_token_logprobs, data)
        valid = data["sample_mask"][::2] > 0
        votes = Votes.single(torch.arange(len(x), device=valid.device))
        losses = self.step(x, votes, valid, self._e_step(data))
        share = valid / (global_valid_seqs / 2).clamp(min=1)  # a batch of masked rows has 0, and a share of 0 each
        rewards = x.log_ratios(average=self.average_rewards)
        objective = self._objective(losses, data)
        if HELD_OUT in data:  # a measure: the labels taken at their word, under the same loss for all
            objective = label_loss(losses.delta, votes)
        metrics = {
            "loss": objective,
            "sft_loss": losses.sft if self.step.sft_weight else torch.zeros_like(losses.sft),
            "preference_loss": losses.preference,
            "accuracy": agreement(losses.delta, votes.better()),
            "rewards_chosen_mean": rewards[0],
            "rewards_rejected_mean": rewards[1],
        }
        scalars = torch.stack([_sum(value, share) for value in metrics.values()] + [valid.sum() / 1.0]).tolist()
        vectors = (data[PAIR][::2], losses.w, losses.delta, losses.statistic)
        return _sum(objective, share), {
            **dict(zip((*metrics, "num_valid_samples"), scalars, strict=True)),
            **{name: _array(value[valid]) for name, value in zip(VECTORS, vectors, strict=True)},
        }

    def _pair_logprobs(self, next_token_logprobs: Tensor, data: Any) -> PairLogprobs:
        mask = data["token_mask"][:, 1:] > 0
        policy = torch.where(mask, next_token_logprobs.float(), 0.0).sum(-1)
        reference = torch.where(mask, data["reference_policy_logprobs"][:, :-1].float(), 0.0).sum(-1)
        length = mask.sum(-1)
        return PairLogprobs(
            policy[::2], policy[1::2], reference[::2], reference[1::2], length[::2], length[1::2]
        )  # fmt: skip

    def _objective(self, losses: PairLosses, data: Any) -> Tensor:
        """[n], whose mean over the global batch has the loss's value and its gradient there."""
        reduction = self.base.reduction
        if isinstance(reduction, Mean):
            return losses.surrogate
        mean = data[STATISTIC][::2]
        surrogate = losses.surrogate / mean
        return surrogate - surrogate.detach() + reduction.value(surrogate.detach(), mean, torch.ones_like(mean))

    def _e_step(self, data: Any) -> CarriedReliability | None:
        """With the η that the step began with; None without the EM and in evaluation: every label is believed."""
        if not self.robust.enabled or HELD_OUT in data:
            return None
        if EVIDENCE not in data:
            raise ConfigError("the batch carries no reliabilities: pass RobustPolicy(policy, …) to dpo_train")
        return CarriedReliability(*(data[name][::2] for name in (EVIDENCE, VOICE, LABEL, SHARPNESS)))


def _sum(value: Tensor, share: Tensor) -> Tensor:
    # where and not a product alone: a masked pair may hold anything, and 0 · inf is NaN.
    return torch.where(share > 0, value * share, 0.0).sum()


def _array(value: Tensor) -> Any:
    return value.detach().double().cpu().numpy()
