"""NeMo-Aligner's DPO trainer, with reliabilities that move when the weights do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from nemo_aligner.algorithms.dpo import DPOTrainer

from nemo_rpo.errors import CheckpointError
from nemo_rpo.integrations.nemo_aligner.data import AnnotatorCollate, TrainingLabels
from nemo_rpo.integrations.nemo_aligner.model import MegatronGPTRPOModel


class RPOTrainer(DPOTrainer):
    """``DPOTrainer`` for :class:`MegatronGPTRPOModel`.

    Args:
        model, optimizer, collate_fn: as ``DPOTrainer``'s; the collate function is upstream's own.
        labels: who labelled which pair of the training data (:func:`training_labels`).
        kwargs: ``DPOTrainer``'s further arguments.

    Raises:
        DataError: the data has annotators that the checkpoint which the model was restored from lacks.
    """

    def __init__(
        self,
        *,
        model: MegatronGPTRPOModel,
        optimizer: Any,
        collate_fn: Callable,
        labels: TrainingLabels,
        **kwargs: Any,
    ) -> None:
        model.connect_labels(labels)
        collate = AnnotatorCollate(collate_fn, model.labels)
        super().__init__(model=model, optimizer=_Watched(optimizer), collate_fn=collate, **kwargs)

    def fit(self) -> None:
        """Upstream's; at the end of training η takes in what the steps since its last refit have brought, unless the
        run was stopped before. The collectives of :meth:`nemo_rpo.em.BufferedReliability.settle`.
        """
        super().fit()
        if self.model.rpo.enabled and self.step >= self.max_steps:
            self.model.em.settle()

    def train_single_step(self, global_batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
        """Upstream's step, then the M-step; η stays where loss or gradient was not finite, or the step was skipped."""
        loss, metrics = super().train_single_step(global_batch)
        grad_norm = self.optimizer.grad_norm(metrics.get("grad_norm", 0.0))
        updated = grad_norm is not None and math.isfinite(grad_norm) and math.isfinite(loss)
        return loss, metrics | self.model.finish_em_step(updated)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Upstream's.

        Raises:
            CheckpointError: the run to be resumed was trained without reliabilities.
        """
        super().load_state_dict(state_dict)
        if self.step > 0 and self.model.rpo.enabled and self.model.restored is None:
            raise CheckpointError(
                "the checkpoint holds no reliabilities: resume it with model.rpo.enabled=false, or start in a new "
                "exp_manager.explicit_log_dir"
            )


class _Watched:
    """An optimizer whose ``step`` is remembered: NeMo's distributed one clips inside it, and says there what came out.

    It returns (loss, gradient norm, zeros), the norm being None where the step was skipped; the others return nothing.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self._result = optimizer, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self._result = self._optimizer.step(*args, **kwargs)
        return self._result

    def grad_norm(self, clipped_outside: float) -> float | None:
        """Of the last step: what the optimizer said, else what the trainer computed; None for a skipped step."""
        if not isinstance(self._result, tuple):
            return clipped_outside
        norm = self._result[1]
        return None if norm is None else float(norm)
