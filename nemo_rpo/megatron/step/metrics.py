"""The figures of one step, summed on the device while its micro-batches run.

No figure waits for the device before the step is over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rpo.em import PairLosses, Votes, agreement, label_loss
from nemo_rpo.losses import PairLogprobs
from nemo_rpo.losses.pair import Two
from nemo_rpo.losses.reduction import Reduction

# Sums over the valid pairs of the global batch, those of a ranking together counting as one; `means` turns them into
# the names that a person reads.
_SUMS = (
    "pairs", "surrogate", "statistic", "label_loss", "preference_loss", "sft_loss", "acc", "margin",
    "rewards_chosen", "rewards_rejected", "rewards_squared", "logps_chosen", "logps_rejected",
    "posterior", "flipped", "abs_delta", "chosen", "rejected",
)  # fmt: skip


class StepMetrics:
    """Sums of one optimizer step (or one validation pass), float64 on the device.

    ``sums`` is added up over ranks together with the EM's statistics; after that the rest is the same everywhere.

    Args:
        reduction: how the losses of pairs become the loss of the batch.
        logps: whether there are log-probs; a reward model has none.
    """

    def __init__(self, reduction: Reduction, device: torch.device, logps: bool = True) -> None:
        self.reduction, self.logps = reduction, logps
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)

    def reset(self) -> None:
        """Starts the next step's sums at 0."""
        self.sums.zero_()

    @torch.no_grad()
    def add(self, x: PairLogprobs, losses: PairLosses, votes: Votes, gold: Tensor | None = None) -> None:
        """Adds one micro-batch: its pairs ``x``, what the step made of them, their labels and, where a policy is
        measured and not trained, their ``gold`` labels int64 [pairs], 0 where unknown.
        """
        chosen, rejected = _rewards(x, losses.delta)
        better = votes.better()
        if gold is not None:
            better = torch.where(gold != 0, gold.to(better.dtype), better)
        there = [torch.ones_like(losses.loss) if of is None else of > 0 for of in (x.chosen_length, x.rejected_length)]
        policy = x.policy() if self.logps else (torch.zeros_like(losses.loss),) * 2
        rows = torch.stack(
            [
                torch.ones_like(losses.loss), losses.surrogate, losses.statistic,
                label_loss(losses.delta, votes), losses.preference, losses.sft,
                agreement(losses.delta, better), better * losses.delta,
                chosen, rejected, chosen.square() + rejected.square(), *policy,
                losses.w, (losses.w < 0.5).float(), losses.delta.abs(), *there,
            ]
        ).double()  # fmt: skip
        self.sums += torch.where(losses.counts_for > 0, rows * losses.counts_for, 0.0).sum(-1)

    def gradient_scale(self) -> float:
        """What the gradient of the *mean* surrogate has to be multiplied by: pairs / Σ statistic; exactly 1 for a mean.

        Waits for the device.
        """
        total = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        return total["pairs"] / total["statistic"]

    def means(self, held_out: bool = False) -> dict[str, float]:
        """NeMo-Aligner's metric names.

        ``loss`` is what training minimises; of ``held_out`` pairs it is −log σ(Δ) of the recorded labels (of several
        votes, by their share), the same measure for every loss and every estimator. ``margin`` is Δ of the better
        response over the other one, in the units of the loss's link (under DPO β times the difference of the
        log-ratios), as everywhere in this package; ``acc`` the share of pairs with a positive one, a margin of 0
        counting half. The better response is what most labels say, of held-out pairs the gold label where there is one.

        Rewards are log-ratios to the reference *without* β, as NeMo-Aligner's are (to the previous iterate where that
        is the only frozen policy, plain log-probs where there is none), a reward model's scores, or Δ and 0 of one that
        scores pairs alone.

        Waits for the device, once.
        """
        total = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        n = max(total["pairs"], 1.0)
        mean = {name: value / n for name, value in total.items()}
        # Of completions judged alone one side is absent, and is no part of a mean over that side.
        sides = max(total["chosen"] + total["rejected"], 1.0)
        rewards_all = (total["rewards_chosen"] + total["rewards_rejected"]) / sides
        variance = total["rewards_squared"] / sides - rewards_all**2
        for side in ("chosen", "rejected"):
            for figure in (f"rewards_{side}", f"logps_{side}"):
                mean[figure] = total[figure] / max(total[side], 1.0)
        return {
            "loss": mean["label_loss"] if held_out else self._loss(total),
            "preference_loss": mean["preference_loss"],
            "sft_loss": mean["sft_loss"],
            "acc": mean["acc"],
            "rewards_chosen_mean": mean["rewards_chosen"],
            "rewards_rejected_mean": mean["rewards_rejected"],
            "rewards_all_mean": rewards_all,
            "rewards_all_std": max(variance, 0.0) ** 0.5,
            "margin": mean["margin"],
            **{f"{name}_mean": mean[name] for name in ("logps_chosen", "logps_rejected") if self.logps},
            "em/posterior_mean": mean["posterior"],
            "em/frac_flipped": mean["flipped"],
            "em/abs_delta_mean": mean["abs_delta"],
        }

    def _loss(self, total: dict[str, float]) -> float:
        sums = (torch.tensor(total[name], dtype=torch.float64) for name in ("surrogate", "statistic", "pairs"))
        return self.reduction.value(*sums).item()


def _rewards(x: PairLogprobs, delta: Tensor) -> Two:
    """The rewards of chosen and rejected ``[pairs]``, as :meth:`StepMetrics.means` defines them."""
    if x.policy_chosen is None:
        return x.response_columns.get("score", (delta, torch.zeros_like(delta)))
    frozen = (x.reference_chosen, x.reference_rejected)
    if x.reference_chosen is None:
        frozen = x.response_columns.get("base_logps", (0.0, 0.0))
    return x.policy_chosen - frozen[0], x.policy_rejected - frozen[1]
