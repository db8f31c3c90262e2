"""What a run's loss asks of the engine: read from what the loss declares, never from its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_rpo.config.schema import ModelConfig
from nemo_rpo.losses import PreferenceLoss

REFERENCE_POINTS = ("mismatched_kl", "mean_log_ratio")


@dataclass(frozen=True)
class StepNeeds:
    """Which policies a step runs, and what they compute besides log-probs.

    Attributes:
        logps: log-probs of the policy. A reward model needs none, and its language-model head stays untrained.
        reference: the loss compares with the frozen reference, or with a previous iterate that is the reference.
        live_reference: the reference has to run in each step; False too where its log-probs are cached.
        previous_iterate: the loss compares with a frozen policy of its own beside the reference.
        kl: the divergence of the reference's predictions to the policy's at each scored token.
        turns: log-probs by turn of the assistant.
        reference_point: the column that holds one number of the global batch, a mean log-ratio: ``mismatched_kl``, of
            other completions behind its prompts, or ``mean_log_ratio``, of its own; None: neither.
        reward_outputs: name → width of what a reward head gives.
        players: the models whose strengths it gives, in the order of that output; empty without such.
    """

    logps: bool
    reference: bool
    live_reference: bool
    previous_iterate: bool
    kl: bool
    turns: bool
    reference_point: str | None
    reward_outputs: Mapping[str, int]
    players: tuple[str, ...] = ()

    @property
    def further_forwards(self) -> int:
        """Forward passes over the batch that measure the reference point: the policy's, and of other completions the
        reference's too.
        """
        return {None: 0, "mean_log_ratio": 1, "mismatched_kl": 2}[self.reference_point]

    @classmethod
    def of(cls, loss: PreferenceLoss, model: ModelConfig) -> StepNeeds:
        """What ``loss`` needs under the settings of ``model``."""
        iterates = "base_logps" in loss.needs
        previous_iterate = iterates and model.rpo.previous_iterate is not None
        reference = "reference" in loss.needs or (iterates and not previous_iterate)
        width = model.rpo.embedding_width
        widths = {"score": 1, "scores": loss.groups, "embedding": width, "gate": width // 2}
        widths |= {"coefficients": len(model.data.players), "tie_width": 1}
        return cls(
            logps="policy" in loss.needs or model.dpo.sft_loss_weight > 0,
            reference=reference,
            live_reference=reference and model.rpo.reference != "cached",
            previous_iterate=previous_iterate,
            kl="kl" in loss.needs,
            turns="turn_log_ratios" in loss.needs,
            reference_point=next((name for name in REFERENCE_POINTS if name in loss.needs), None),
            reward_outputs={name: width for name, width in widths.items() if name in loss.needs},
            players=tuple(model.data.players),
        )
