"""A proxy around NeMo-RL's policy: what the stock ``dpo_train`` calls, with the EM on the driver around it.

Shapes: B rows of a global batch, P = B/2 pairs, K annotators. Workers see one batch and are forgotten; everything that
lasts (η, its evidence, the margins of all pairs, the table) lives here, in the one process that sees every batch.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.em import BufferedReliability, Collectives, Votes, add_evidence, build_estimator
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.integrations.em_state import continued, load_state, packed, restore, save_state
from nemo_rpo.integrations.nemo_rl.data import ROW_KEYS, data_fingerprint, id_code, labelled_pairs
from nemo_rpo.integrations.nemo_rl.loss import (
    EVIDENCE,
    HELD_OUT,
    LABEL,
    PAIR,
    SHARPNESS,
    STATISTIC,
    VECTORS,
    VOICE,
    RobustLoss,
)
from nemo_rpo.integrations.nemo_rl.nemo_rl_settings import BLOCK, entry
from nemo_rpo.losses.reduction import Mean


class RobustPolicy:
    """Passes everything on to ``policy``, and learns whom to believe from its training steps.

    Args:
        policy: upstream's policy.
        master_config: the whole configuration; ``checkpointing`` says where a run resumes from.
        loss_fn: what :func:`make_loss` built and ``dpo_train`` gets.
        train_dataloader: as built by ``setup``; its data set lists the annotators.
        dpo_save_state: as returned by ``setup``; when it has steps behind it, η comes back from the checkpoint.

    Attributes:
        em: the reliabilities. annotators: who stands behind each.

    Raises:
        DataError: the data names no annotators, or others than the checkpoint (``dpo.robust.allow_new_annotators``).
        CheckpointError: a run is resumed whose checkpoint has no state of the EM, or margins of other pairs.
    """

    def __init__(
        self, policy: Any, *, master_config: Any, loss_fn: RobustLoss, train_dataloader: Any, dpo_save_state: Any = None
    ) -> None:
        self._policy = policy
        self._robust, self._base = loss_fn.robust, loss_fn.base
        dataset = getattr(train_dataloader, "dataset", train_dataloader)
        pairs = labelled_pairs(dataset, self._robust.annotator_key if self._robust.enabled else None)
        self.annotators, state = pairs.table(), None
        keeps_margins = self._robust.enabled and self._robust.estimator == BufferedReliability.estimator
        self._fingerprint = data_fingerprint(dataset) if keeps_margins else None
        if self._robust.enabled and entry(dpo_save_state, "total_steps", 0) > 0:
            saved, state = load_state(Path(_latest_checkpoint(master_config) or "") / "policy")
            self.annotators = continued(saved, self.annotators, self._robust.allow_new_annotators, BLOCK)
        votes_of = partial(pairs.votes_of, self.annotators)
        crowd_of = partial(pairs.crowd, self.annotators)
        self.em = build_estimator(self._robust, len(self.annotators), len(pairs), votes_of, crowd_of=crowd_of)
        if state is not None:
            restore(self.em, state, self._fingerprint, BLOCK)
        self._index = {id_code(name): k for k, name in enumerate(self.annotators.ids)}

    def __getattr__(self, name: str) -> Any:
        if name == "_policy":  # asked for before __init__, by copy and pickle
            raise AttributeError(name)
        return getattr(self._policy, name)

    @property
    def reliabilities(self) -> dict[str, float]:
        """η of every annotator by id."""
        return dict(zip(self.annotators.ids, self.em.eta.tolist(), strict=True))

    def settle(self) -> None:
        """After ``dpo_train``, which has no place to call it from: takes in what the steps since the last refit have
        brought. Under ``ema`` there is nothing to do.
        """
        if self._robust.enabled:
            self.em.settle()

    def get_reference_policy_logprobs(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The policy's, on a batch in which this package's keys are as long as the rest.

        Upstream fills up the last validation batch just before this call, and knows only its own keys. The rows added
        have ``sample_mask`` 0, so what stands in them counts nowhere.
        """
        _fill_up(data)
        return self._policy.get_reference_policy_logprobs(data, *args, **kwargs)

    def train(self, data: Any, loss_fn: Any, eval_mode: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The policy's training step with η fixed, then the M-step; or, in evaluation, the forward pass alone.

        The step's evidence is committed only if the gradient was finite: a step that the optimizer skipped moves
        neither weights nor η. The results hold upstream's metrics and ``em/…``, no vector among them.

        Raises:
            ConfigError: the call holds several global batches.
            DataError: a pair to be trained on names no annotator, or one that the data set did not list.
        """
        batch = self._with_reliabilities(data, training=not eval_mode)
        if kwargs.get("gbs") not in (None, batch.size):
            raise ConfigError(
                f"{batch.size} rows with gbs={kwargs['gbs']} would take several steps on one η: pass one global batch "
                "a call, as dpo_train does"
            )
        if not isinstance(self._base.reduction, Mean):
            batch[STATISTIC] = self._mean_statistic(batch, loss_fn, kwargs)
        results = self._policy.train(batch, loss_fn, eval_mode=eval_mode, **kwargs)
        metrics = results["all_mb_metrics"]
        pair, w, delta, _ = _take_vectors(metrics)
        if not eval_mode and self._robust.enabled:
            self._learn(batch, pair.long(), w, delta, finite=_is_finite(results.get("grad_norm")))
            if metrics:
                metrics |= {name: [value] for name, value in self._metrics(w, delta).items()}
        return results

    def _mean_statistic(self, batch: Any, loss_fn: Any, kwargs: dict[str, Any]) -> Tensor:
        """[B], from a forward pass of its own: no micro-batch sees the batch that a loss such as Dr. DPO's is over."""
        batch[STATISTIC] = torch.ones(batch.size)
        sizes = {name: kwargs[name] for name in ("gbs", "mbs") if name in kwargs}
        *_, statistic = _take_vectors(self._policy.train(batch, loss_fn, eval_mode=True, **sizes)["all_mb_metrics"])
        return torch.full((batch.size,), statistic.mean().item() if len(statistic) else 1.0)

    def save_checkpoint(self, weights_path: str, *args: Any, **kwargs: Any) -> Any:
        """The policy's, with the EM's state beside its weights."""
        if self._robust.enabled:
            save_state(Path(weights_path).parent, packed(self.em, self.annotators, self._fingerprint))
        return self._policy.save_checkpoint(weights_path, *args, **kwargs)

    def _with_reliabilities(self, data: Any, training: bool) -> Any:
        """A copy of the batch with the keys that the loss reads, [B] each."""
        _fill_up(data)
        batch = copy.copy(data)
        index = self._annotator_index(data, training)
        pair = self._row_index(data) if training and self.em.pair_evidence is not None else None
        votes = Votes.single(index)
        label, sharpness = self.em.bounded(votes, pair)
        voice = torch.zeros(()) if self.em.warming_up else self.em.voice.weight.float()
        of_pairs = {EVIDENCE: self.em.evidence(votes, pair), PAIR: torch.arange(len(index)), LABEL: label}
        of_pairs |= {name: of.float().expand(len(index)) for name, of in ((VOICE, voice), (SHARPNESS, sharpness))}
        for name, of in of_pairs.items():
            batch[name] = of.repeat_interleave(2)
        if not training:
            batch[HELD_OUT] = torch.ones(2 * len(index), dtype=torch.bool)
        return batch

    def _annotator_index(self, data: Any, training: bool) -> Tensor:
        """Index of every pair's annotator, int64 [P]; K, as reliable as all were at the start, for strangers."""
        pairs = data.size // 2
        if not self._robust.enabled or self._robust.annotator_key is None:
            return torch.zeros(pairs, dtype=torch.int64)
        if "annotator" not in data:
            raise DataError("the batch has no 'annotator': give the data loaders preference_collate as collate_fn")
        stranger = len(self.annotators)
        codes = data["annotator"][::2].tolist()
        index = torch.tensor([self._index.get(code, stranger) for code in codes])
        if training and (unknown := (index == stranger) & (data["sample_mask"][::2] > 0)).any():
            pair = int(data["pair_id"][::2][unknown][0])
            raise DataError(
                f"the annotator of training pair {pair} is not among the {stranger} of the data set's field "
                f"'{self._robust.annotator_key}': give preference_processor that annotator_key"
            )
        return index

    @torch.no_grad()
    def _learn(self, batch: Any, pair: Tensor, w: Tensor, delta: Tensor, finite: bool) -> None:
        if not finite:
            self.em.rollback()
            return
        # By the pair's place in the batch: workers drop micro-batches in which all rows are masked, and may answer for
        # the same pair more than once; neither changes what is counted here.
        index = self._annotator_index(batch, training=True)
        posteriors, margins = torch.zeros(2, len(index), dtype=torch.float64)
        seen = torch.zeros(len(index), dtype=torch.bool)
        posteriors[pair], margins[pair], seen[pair] = w, delta, True
        known = index.clamp(max=len(self.annotators) - 1)  # strangers are masked rows, which are not seen
        add_evidence(self.em, self._row_index(batch), posteriors, margins, Votes.single(known), seen)
        self.em.exchange(Collectives().gather_rows)  # of one process: the driver has all rows
        self.em.commit()

    def _row_index(self, data: Any) -> Tensor:
        """Place in the data set of every pair, int64 [P]."""
        if "row_index" not in data:
            raise DataError("the batch has no 'row_index': give the data loaders preference_collate as collate_fn")
        return data["row_index"][::2]

    def _metrics(self, w: Tensor, delta: Tensor) -> dict[str, float]:
        """This package's own names for them."""
        fit = self.em.estimate
        return {
            **({} if fit is None else {"em/information": fit.information}),
            "em/eta_mean": self.em.eta.mean().item(),
            "em/eta_min": self.em.eta.min().item(),
            "em/posterior_mean": w.mean().item(),
            "em/frac_flipped": (w < 0.5).double().mean().item(),
            "em/abs_delta_mean": delta.abs().mean().item(),
        }


def _fill_up(data: Any) -> None:
    """Repeats the last row's entries of this package's keys up to the size of the batch, in place."""
    for key in ROW_KEYS:
        if key in data and (missing := data.size - len(data[key])) > 0:
            data[key] = torch.cat((data[key], data[key][-1:].expand(missing)))


def _take_vectors(metrics: dict[str, Any]) -> list[Tensor]:
    """What the loss added, of all micro-batches, float64; empty where every row of the batch was masked."""
    found = (metrics.pop(name, ()) for name in VECTORS)
    return [torch.from_numpy(np.concatenate([np.zeros(0), *vectors])) for vectors in found]


def _is_finite(grad_norm: Any) -> bool:
    """Whether the optimizer can have taken the step; upstream gives None where it does not report the norm."""
    return grad_norm is None or bool(torch.as_tensor(grad_norm, dtype=torch.float64).isfinite().all())


def _latest_checkpoint(master_config: Any) -> str | None:
    from nemo_rl.utils.checkpoint import CheckpointManager

    return CheckpointManager(entry(master_config, "checkpointing")).get_latest_checkpoint_path()
