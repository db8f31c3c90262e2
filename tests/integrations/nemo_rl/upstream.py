"""The part of NeMo-RL's interface that an adapter of its DPO recipe meets, written anew from its contract.

NeMo-RL is on no package index. What stands here was read in v0.6.0 (5fb5889), v0.7.0 (81aa43d) and main (7ea279a,
August 2026): the files are named with each object. Where the versions differ, a :class:`Version` says how.
"""

from __future__ import annotations

import enum
import re
import sys
import threading
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Version:
    """What differs between the versions, as nemo_rl/algorithms/dpo.py of each has it."""

    name: str
    dictionary_config: bool  # the two upper levels of the configuration are dictionaries, else pydantic models
    dictionary_save_state: bool  # else a dataclass that drops unknown fields on loading
    finalizes_in_thread: bool  # begin_finalization(wait_fn=...) instead of finalize_checkpoint
    fused_flag: str  # policy.megatron_cfg's and the loss's name for log-probs from a fused kernel

    def __str__(self) -> str:
        return self.name


VERSIONS = (
    Version("v0.6.0:nemo_rl/algorithms/dpo.py", True, True, False, "use_linear_ce_fusion_loss"),
    Version("v0.7.0:nemo_rl/algorithms/dpo.py", False, False, False, "use_linear_ce_fusion_loss"),
    Version("main@7ea279a:nemo_rl/algorithms/dpo.py", False, False, True, "use_fused_linear_logprobs"),
)


def config(version: Version, tree: dict[str, Any]) -> Any:
    """``MasterConfig`` of a version: below the two upper levels everything is a dictionary in all of them."""
    if version.dictionary_config:
        return tree
    return SimpleNamespace(**{**tree, "dpo": SimpleNamespace(**tree["dpo"])})


class LossType(enum.Enum):
    """nemo_rl/algorithms/loss/interfaces.py, all versions."""

    TOKEN_LEVEL = "token_level"
    SEQUENCE_LEVEL = "sequence_level"


class LossInputType(enum.Enum):
    """nemo_rl/algorithms/loss/interfaces.py, all versions."""

    LOGIT = "logit"
    LOGPROB = "logprob"


class BatchedDataDict(UserDict):
    """nemo_rl/distributed/batched_data_dict.py, all versions: what travels to workers and is cut there."""

    @property
    def size(self) -> int:
        """By the first key alone."""
        return len(next(iter(self.data.values())))

    def slice(self, start: int, end: int) -> BatchedDataDict:
        return BatchedDataDict({key: value[start:end] for key, value in self.data.items()})

    def shard_by_batch_size(self, shards: int, batch_size: int) -> list[BatchedDataDict]:
        """Contiguous; every key has to be as long as the others."""
        sizes = {value.size(0) if isinstance(value, Tensor) else len(value) for value in self.data.values()}
        assert len(sizes) == 1, f"Batch sizes are not the same across the rollout batch, found sizes: {sorted(sizes)}"
        assert sizes == {batch_size} and batch_size % shards == 0
        each = batch_size // shards
        return [self.slice(rank * each, (rank + 1) * each) for rank in range(shards)]


def preference_preprocessor(
    datum_dict: dict[str, Any], task_data_spec: Any, tokenizer: Callable, max_seq_length: int, idx: int
) -> dict[str, Any]:
    """nemo_rl/data/processors.py, all versions: one row to two message logs; over-long pairs are cut and masked."""
    better, worse = sorted(datum_dict["completions"], key=lambda completion: completion["rank"])
    row: dict[str, Any] = {"loss_multiplier": 1.0, "idx": idx}
    for side, completion in (("chosen", better), ("rejected", worse)):
        messages = datum_dict["context"] + completion["completion"]
        log = [{"role": m["role"], "token_ids": tokenizer(m["content"])} for m in messages]
        row[f"message_log_{side}"], row[f"length_{side}"] = log, sum(len(m["token_ids"]) for m in log)
    if max(row["length_chosen"], row["length_rejected"]) > max_seq_length:
        row["loss_multiplier"] = 0.0
        for side in ("chosen", "rejected"):
            for message in row[f"message_log_{side}"]:
                message["token_ids"] = message["token_ids"][:2]
            row[f"length_{side}"] = sum(len(m["token_ids"]) for m in row[f"message_log_{side}"])
    return row


def preference_collate_fn(
    data_batch: list[dict[str, Any]], tokenizer: Any, make_sequence_length_divisible_by: int, add_loss_mask: bool
) -> BatchedDataDict:
    """nemo_rl/data/collate_fn.py, all versions: chosen and rejected interleaved, the last message alone unmasked."""
    logs = [row[f"message_log_{side}"] for row in data_batch for side in ("chosen", "rejected")]
    ids = [torch.cat([message["token_ids"] for message in log]) for log in logs]
    multiple = make_sequence_length_divisible_by
    width = -(-max(len(x) for x in ids) // multiple) * multiple
    batch = BatchedDataDict(
        input_ids=torch.stack([torch.nn.functional.pad(x, (0, width - len(x))) for x in ids]),
        input_lengths=torch.tensor([len(x) for x in ids], dtype=torch.int32),
        sample_mask=torch.tensor([row["loss_multiplier"] for row in data_batch for _ in range(2)]),
    )
    if add_loss_mask:
        masks = [[0] * (len(x) - len(log[-1]["token_ids"])) for x, log in zip(ids, logs, strict=True)]
        whole = [mask + [1] * (len(x) - len(mask)) + [0] * (width - len(x)) for x, mask in zip(ids, masks, strict=True)]
        batch["token_mask"] = torch.tensor(whole)
    return batch


class AllTaskProcessedDataset:
    """nemo_rl/data/datasets/processed_dataset.py, all versions."""

    def __init__(self, dataset: Any, tokenizer: Any, task_data_processors: dict, max_seq_length: int) -> None:
        self.dataset, self.tokenizer, self.max_seq_length = dataset, tokenizer, max_seq_length
        self.task_data_processors = task_data_processors

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        entry = self.dataset[idx]
        spec, processor = self.task_data_processors[entry["task_name"]]
        return processor(entry, spec, self.tokenizer, self.max_seq_length, idx)


class CheckpointManager:
    """nemo_rl/utils/checkpoint.py: a checkpoint is written into ``tmp_step_N`` and renamed when it is whole."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.folder = Path(config["checkpoint_dir"])
        self._thread: threading.Thread | None = None

    def init_tmp_checkpoint(self, step: int) -> Path:
        path = self.folder / f"tmp_step_{step}"
        path.mkdir(parents=True)
        return path

    def finalize_checkpoint(self, path: Path) -> None:
        path.rename(path.with_name(path.name.removeprefix("tmp_")))

    def begin_finalization(self, path: Path, wait_fn: Callable[[], None]) -> None:
        """main: the rename waits for asynchronous writers, in a thread of its own."""

        def finalize() -> None:
            wait_fn()
            self.finalize_checkpoint(path)

        self.shutdown()
        self._thread = threading.Thread(target=finalize)
        self._thread.start()

    def shutdown(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def get_latest_checkpoint_path(self) -> str | None:
        found = [path for path in self.folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
        return str(max(found, key=lambda path: int(path.name.split("_")[1]))) if found else None


def maybe_pad_last_batch(batch: BatchedDataDict, dp_size: int, mbs: int) -> BatchedDataDict:
    """nemo_rl/algorithms/utils.py, all versions: fills up the keys it knows, and no others."""
    missing = -batch.size % (mbs * dp_size)
    for key in ("input_ids", "input_lengths", "token_mask"):
        last = batch[key][-1:]
        batch[key] = torch.cat((batch[key], last.expand(missing, *last.shape[1:])))
    batch["sample_mask"] = torch.cat((batch["sample_mask"], torch.zeros(missing)))
    return batch


_SAVE_FIELDS = ("epoch", "step", "total_steps", "consumed_samples", "total_valid_tokens")
DPOSaveState = make_dataclass("DPOSaveState", [(name, int, 0) for name in _SAVE_FIELDS])


def save_state(version: Version, loaded: dict[str, Any] | None) -> Any:
    """``dpo_save_state`` as ``setup`` returns it: nothing of ours can travel in it."""
    if version.dictionary_save_state:
        return loaded
    known = {field.name for field in fields(DPOSaveState)}
    return DPOSaveState(**{key: value for key, value in (loaded or {}).items() if key in known})


def install(monkeypatch: Any) -> None:
    """Makes ``nemo_rl`` importable for one test, with the modules that the adapter imports and nothing else."""
    contents = {
        "nemo_rl": {},
        "nemo_rl.algorithms": {},
        "nemo_rl.algorithms.loss": {},
        "nemo_rl.algorithms.loss.interfaces": {"LossType": LossType, "LossInputType": LossInputType},
        "nemo_rl.data": {},
        "nemo_rl.data.processors": {"preference_preprocessor": preference_preprocessor},
        "nemo_rl.data.collate_fn": {"preference_collate_fn": preference_collate_fn},
        "nemo_rl.utils": {},
        "nemo_rl.utils.checkpoint": {"CheckpointManager": CheckpointManager},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        module.__dict__.update(members, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
