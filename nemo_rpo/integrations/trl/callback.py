"""When the EM moves: the places in transformers' training loop, and what is done there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from nemo_rpo.em import SweepResult, Votes
from nemo_rpo.integrations.trl.data import take_labels

if TYPE_CHECKING:
    from nemo_rpo.integrations.trl.trainer import RPOTrainer


class EMCallback(TrainerCallback):
    """The M-step with the optimizer's step, the last refit, and the full-batch sweeps that ``rpo.sweep`` asks for."""

    def __init__(self, trainer: RPOTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops what a failed step left of its evidence."""
        self.trainer.forget_step()  # what an attempt that ran out of memory has left

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Commits the step's evidence with the weights."""
        self.trainer.finish_em_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sweeps, under ``sweep: epoch``."""
        if self.trainer.rpo.enabled and self.trainer.rpo.sweep == "epoch":
            self.trainer.sweep()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sweeps, under ``sweep: end``."""
        self.trainer.settle()
        if self.trainer.rpo.enabled and self.trainer.rpo.sweep == "end":
            self.trainer.sweep()


@torch.no_grad()
def sweep_reliabilities(trainer: RPOTrainer) -> SweepResult:
    """The exact full-batch EM over the training data at the present weights; its η becomes the trainer's. Where there
    is a label model it is refitted to the same margins, and its η is the trainer's.

    Costs a forward pass over the data. Every process ends with the same result. Collectives: the model's own, those
    of the estimator's ``fit``; for the label model a gather of 12 bytes a pair, and those of its refit.
    """
    deltas, annotators, signs, pairs = [], [], [], []
    loader = trainer.get_test_dataloader(trainer.train_dataset)
    training = trainer.model.training
    trainer.model.eval()
    try:
        for batch in loader:
            if trainer.accelerator.gradient_state.end_of_dataloader:
                trainer.mask_repeats(batch)
            inputs, (votes, valid, pair) = take_labels(trainer._prepare_inputs(batch))
            with trainer.compute_loss_context_manager():
                x = trainer.pair_logprobs(trainer.model_wrapped, inputs)
            deltas.append(trainer.loss.terms(x).delta[valid])
            annotators.append(votes.annotator[valid])
            signs.append(votes.sign[valid])
            pairs.append(pair[valid])
    finally:
        trainer.model.train(training)
    width = max(sign.shape[-1] for sign in signs)
    votes = Votes(_widened(annotators, width), _widened(signs, width))
    em, delta = trainer.em, torch.cat(deltas)
    found, fitted, _ = em.fit(delta, votes, trainer.collectives)
    em.replace(found.eta)
    if em.label_model is not None:
        rows = torch.stack((torch.cat(pairs).double(), delta.double()), -1)
        pair, margin = trainer.collectives.gather_rows(rows).unbind(-1)
        everywhere = torch.full((em.buffer.num_pairs,), torch.nan, dtype=torch.float64, device=delta.device)
        everywhere[pair.long()] = margin
        if em.sweep_label_model(everywhere / fitted.link_tau) is not None:
            found = found._replace(eta=em.eta, counts=em.label_counts, right_sums=em.right_sums)
    return found


def _widened(columns: list[Tensor], width: int) -> Tensor:
    return torch.cat([F.pad(column, (0, width - column.shape[-1])) for column in columns])
