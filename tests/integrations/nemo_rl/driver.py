"""What a user's driver does around NeMo-RL's recipe, with the stand-ins of this folder: set-up, wiring, training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nemo_rpo.integrations.nemo_rl import RobustPolicy, make_loss, preference_collate, preference_processor

from .upstream import (
    AllTaskProcessedDataset,
    CheckpointManager,
    Version,
    config,
    maybe_pad_last_batch,
    preference_collate_fn,
    preference_preprocessor,
    save_state,
)
from .workers import VOCABULARY, BigramModel, Workers

METRICS = ("loss", "sft_loss", "preference_loss", "accuracy", "rewards_chosen_mean", "rewards_rejected_mean",
           "num_valid_samples", "global_valid_seqs", "global_valid_toks")  # fmt: skip


def rows(pairs: int, annotators: int = 3, seed: int = 0, **fields: Any) -> list[dict[str, Any]]:
    """Preference rows in NeMo-RL's layout; annotator k says the opposite of the others more often the larger k is."""
    generator = torch.Generator().manual_seed(seed)

    def text(low: int, high: int) -> str:
        length = int(torch.randint(3, 7, (1,), generator=generator))
        return " ".join(str(t) for t in torch.randint(low, high, (length,), generator=generator).tolist())

    made = []
    for i in range(pairs):
        annotator = i % annotators
        flipped = torch.rand(1, generator=generator).item() < annotator / (2 * annotators)
        good, bad = text(1, 7), text(6, VOCABULARY)
        made.append(
            {
                "context": [{"role": "user", "content": text(1, VOCABULARY)}],
                "completions": [
                    {"rank": int(flipped), "completion": [{"role": "assistant", "content": good}]},
                    {"rank": int(not flipped), "completion": [{"role": "assistant", "content": bad}]},
                ],
                "annotator": f"worker-{annotator}",
                "pair_id": 100 + i,
                "task_name": "pairs",
                **fields,
            }
        )
    return made


def tokenizer(text: str) -> torch.Tensor:
    return torch.tensor([int(token) for token in text.split()])


class DataLoader:
    """``StatefulDataLoader`` as ``setup`` builds it: a data set, and a partial of upstream's collate function."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool) -> None:
        self.dataset, self.batch_size, self.drop_last, self.skip = dataset, batch_size, drop_last, 0
        self.collate_fn = partial(
            preference_collate_fn, tokenizer=tokenizer, make_sequence_length_divisible_by=4, add_loss_mask=True
        )

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size if self.drop_last else -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Any:
        first, self.skip = self.skip, 0
        for number in range(first, len(self)):
            indices = range(number * self.batch_size, min((number + 1) * self.batch_size, len(self.dataset)))
            yield self.collate_fn([self.dataset[i] for i in indices])


@dataclass
class Recipe:
    """One run: what the YAML and the data say."""

    version: Version
    folder: Path
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]] = field(default_factory=list)
    robust: dict[str, Any] = field(default_factory=dict)
    dpo: dict[str, Any] = field(default_factory=dict)
    max_steps: int = 4
    max_seq_length: int = 64
    dp_size: int = 2
    workers: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        dpo = {
            "max_num_steps": self.max_steps,
            "reference_policy_kl_penalty": 0.5,
            "preference_average_log_probs": False,
            "preference_loss_weight": 1,
            "sft_loss_weight": 0,
            "val_global_batch_size": 8,
            "val_micro_batch_size": 1,
            "val_period": 2,
            "robust": self.robust,
        }
        tree = {
            "dpo": dpo | self.dpo,
            "policy": {"train_global_batch_size": 8, "train_micro_batch_size": 1, "megatron_cfg": {"enabled": False}},
            "checkpointing": {"enabled": True, "checkpoint_dir": str(self.folder), "save_period": 2},
        }
        return config(self.version, tree)


def run(recipe: Recipe) -> SimpleNamespace:
    """Set-up, the five lines of wiring, and the training loop; resumes where the folder has a checkpoint."""
    cfg = recipe.config()
    datasets = [
        AllTaskProcessedDataset(data, tokenizer, {"pairs": (None, preference_preprocessor)}, recipe.max_seq_length)
        for data in (recipe.train, recipe.validation)
    ]
    checkpointer = CheckpointManager({"checkpoint_dir": str(recipe.folder)})
    latest = checkpointer.get_latest_checkpoint_path()
    loaded = json.loads((Path(latest) / "training_info.json").read_text()) if latest else None
    state = save_state(recipe.version, loaded)
    loaders = [DataLoader(datasets[0], 8, drop_last=True), DataLoader(datasets[1], 8, drop_last=False)]
    workers = Workers(BigramModel(), recipe.dp_size, **recipe.workers)
    if latest:
        workers.load_checkpoint(latest)
        loaders[0].skip = loaded["step"]

    for dataset, loader in zip(datasets, loaders, strict=True):
        dataset.task_data_processors = {
            task: (spec, preference_processor) for task, (spec, _) in dataset.task_data_processors.items()
        }
        loader.collate_fn = partial(preference_collate, **loader.collate_fn.keywords)
    dpo_config = cfg["dpo"] if recipe.version.dictionary_config else cfg.dpo
    loss_fn = make_loss(dpo_config, master_config=cfg, train_dataset=datasets[0])
    policy = RobustPolicy(
        workers, master_config=cfg, loss_fn=loss_fn, train_dataloader=loaders[0], dpo_save_state=state
    )
    logged = dpo_train(
        recipe, policy, *loaders, loss_fn, checkpointer, loaded or dict.fromkeys(("step", "total_steps"), 0)
    )
    return SimpleNamespace(policy=policy, workers=workers, loss_fn=loss_fn, loaders=loaders, **logged)


def dpo_train(
    recipe: Recipe, policy: Any, train: DataLoader, validation: DataLoader, loss_fn: Any, checkpointer: Any, info: dict
) -> dict[str, Any]:
    """nemo_rl/algorithms/dpo.py, ``dpo_train``: which calls it makes with what, and what it does with the metrics."""
    step, logged, validated = info["total_steps"], [], []
    while step < recipe.max_steps:
        for place, batch in enumerate(add_ref_logprobs(train, policy, is_val=False), start=train.skip):
            results = policy.train(batch, loss_fn, eval_mode=False, gbs=16, mbs=2, timer=None)
            step += 1
            metrics = {"loss": results["loss"].numpy(), "grad_norm": results["grad_norm"].numpy()}
            metrics.update(results["all_mb_metrics"])
            for name, value in metrics.items():
                average = name in {"lr", "wd", "global_valid_seqs", "global_valid_toks"}
                metrics[name] = (np.mean(value) if average else np.sum(value)).item()
            assert all(np.isfinite(metrics[name]) for name in METRICS)
            logged.append(metrics)
            if step % 2 == 0:
                validated += validate(policy, validation, loss_fn)
                save(recipe, policy, checkpointer, step, place, len(train))
            if step >= recipe.max_steps:
                break
    checkpointer.shutdown()
    return {"logged": logged, "validated": validated}


def add_ref_logprobs(loader: DataLoader, policy: Any, is_val: bool) -> Any:
    """``add_ref_logprobs_to_data``: a partial validation batch is filled up before the reference runs."""
    dp_size = policy.sharding_annotations.get_axis_size("data_parallel")
    for batch in loader:
        if batch.size % (dp_size * 2):
            assert is_val
            batch = maybe_pad_last_batch(batch, dp_size, 2)
        logprobs = policy.get_reference_policy_logprobs(batch, micro_batch_size=2)["reference_logprobs"]
        batch["reference_policy_logprobs"] = torch.roll(logprobs, -1, dims=-1)
        yield batch


def validate(policy: Any, loader: DataLoader, loss_fn: Any) -> list[dict[str, float]]:
    policy.prepare_for_training()
    found = []
    for batch in add_ref_logprobs(loader, policy, is_val=True):
        metrics = policy.train(batch, loss_fn, eval_mode=True, gbs=batch.size, mbs=2)["all_mb_metrics"]
        found.append({name: float(sum(metrics[name])) for name in METRICS[:-2]})
    return found


def save(recipe: Recipe, policy: Any, checkpointer: Any, step: int, place: int, per_epoch: int) -> None:
    path = checkpointer.init_tmp_checkpoint(step)
    info = {"total_steps": step, "step": (place + 1) % per_epoch, "epoch": 0}
    (path / "training_info.json").write_text(json.dumps(info))
    policy.save_checkpoint(
        weights_path=str(path / "policy" / "weights"),
        optimizer_path=str(path / "policy" / "optimizer"),
        tokenizer_path=str(path / "policy" / "tokenizer"),
        checkpointing_cfg={},
    )
    if recipe.version.finalizes_in_thread:
        checkpointer.begin_finalization(path, wait_fn=policy.finalize_async_save)
    else:
        checkpointer.finalize_checkpoint(path)
