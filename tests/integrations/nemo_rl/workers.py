"""A policy as NeMo-RL's driver sees it, in this process: shards, pickled loss, micro-batches, metrics coming back.

Follows nemo_rl/models/policy/lm_policy.py (``train``) and workers/dtensor_policy_worker.py, whose steps are the same in
v0.6.0, v0.7.0 and main. The model is a bigram table, so a step takes microseconds and its gradients are real.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 12


class BigramModel(torch.nn.Module):
    """logits at position t: row of the token at t. Starts at its own reference."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(vocabulary, vocabulary, generator=generator))

    def next_token_logprobs(self, input_ids: Tensor) -> Tensor:
        """[b, S-1]."""
        logprobs = self.table[input_ids[:, :-1]].log_softmax(-1)
        return logprobs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)


class Workers:
    """``Policy`` over ``dp_size`` data-parallel workers.

    Args:
        keeps_masked: the Megatron worker returns metrics of micro-batches in which every row is masked; DTensor's drops
            them.
        answers: how often each worker's metrics come back (1; replicas that are not left out would be more).
    """

    def __init__(
        self, model: BigramModel, dp_size: int, lr: float = 0.5, keeps_masked: bool = False, answers: int = 1
    ) -> None:
        self.model, self.dp_size, self.keeps_masked, self.answers = model, dp_size, keeps_masked, answers
        self.reference = BigramModel(len(model.table))
        self.reference.load_state_dict(model.state_dict())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        self.sharding_annotations = SimpleNamespace(get_axis_size=lambda axis: {"data_parallel": dp_size}[axis])
        self.cfg = {"train_global_batch_size": 0}
        self.losses: list[float] = []
        self.seen: list[dict[str, Any]] = []
        self.spoil_gradient = False

    def prepare_for_training(self) -> None:
        self.model.train()

    def finalize_async_save(self) -> None:
        """main only."""

    @torch.no_grad()
    def get_reference_policy_logprobs(self, data: Any, micro_batch_size: int) -> dict[str, Tensor]:
        shards = data.shard_by_batch_size(self.dp_size, data.size)
        assert all(shard.size % micro_batch_size == 0 for shard in shards)
        logprobs = torch.cat([self.reference.next_token_logprobs(shard["input_ids"]) for shard in shards])
        return {"reference_logprobs": torch.nn.functional.pad(logprobs, (1, 0))}

    def train(
        self, data: Any, loss_fn: Any, eval_mode: bool = False, gbs: int = 0, mbs: int = 0, timer: Any = None
    ) -> dict[str, Any]:
        """Sum of the micro-batches' losses over all workers, one step, metrics as lists of one value a micro-batch."""
        self.seen.append({key: value.clone() for key, value in data.items()})
        sequence = data["input_ids"].shape[1]
        assert all(value.ndim == 1 or value.shape[1] == sequence for value in data.values())
        self.optimizer.zero_grad()
        answers: list[dict[str, Any]] = []
        for shard in data.shard_by_batch_size(self.dp_size, gbs):
            # Each call reaches each worker as a copy: nothing a worker changes in its loss comes back.
            answers += self._worker(shard, pickle.loads(pickle.dumps(loss_fn)), eval_mode, data, mbs)
        total = torch.tensor([sum(metrics["loss"] for metrics in answers)])
        grad_norm = None if eval_mode else self._step()
        self.losses.append(total.item())
        collected = defaultdict(list)
        for metrics in answers * self.answers:
            for name, value in metrics.items():
                collected[name].append(value)
        return {"loss": total, "grad_norm": grad_norm, "all_mb_metrics": dict(collected)}

    def _worker(self, shard: Any, loss_fn: Any, eval_mode: bool, batch: Any, mbs: int) -> list[dict[str, Any]]:
        valid_seqs = batch["sample_mask"].sum()
        valid_toks = (batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]).sum()
        kept = []
        for start in range(0, shard.size, mbs):
            micro_batch = shard.slice(start, start + mbs)
            with torch.set_grad_enabled(not eval_mode):
                loss, metrics = loss_fn(
                    data=micro_batch,
                    global_valid_seqs=valid_seqs,
                    global_valid_toks=valid_toks,
                    next_token_logprobs=self.model.next_token_logprobs(micro_batch["input_ids"]),
                )
            if not eval_mode:
                loss.backward()
            for name in metrics:
                if "_min" not in name and "_max" not in name:
                    metrics[name] /= 1  # in place: raises for lists and for tensors or arrays of integers
            if metrics["num_valid_samples"] > 0 or self.keeps_masked:
                extra = {"lr": 0.1, "global_valid_seqs": valid_seqs.item(), "global_valid_toks": valid_toks.item()}
                kept.append({**metrics, **extra})
        return kept

    def _step(self) -> Tensor:
        if self.spoil_gradient:
            return torch.tensor([float("nan")])  # and the optimizer skips the step
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        self.optimizer.step()
        return norm.reshape(1)

    def save_checkpoint(self, weights_path: str, optimizer_path: Any = None, **_: Any) -> None:
        Path(weights_path).mkdir(parents=True)
        torch.save(self.model.state_dict(), Path(weights_path) / "model.pt")

    def load_checkpoint(self, path: str) -> None:
        self.model.load_state_dict(torch.load(Path(path) / "policy" / "weights" / "model.pt"))
