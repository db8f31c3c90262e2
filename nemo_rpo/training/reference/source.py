"""Where the log-probs of the frozen policies come from: run in each step, or computed once and read from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from nemo_rpo.config.places import run_folder
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.truncation import TRUNCATION_RULE
from nemo_rpo.megatron.model import Batch, MegatronGPTRPOModel
from nemo_rpo.training.data_of_run import Split, cache_spec
from nemo_rpo.training.origin import reference_path, weights_fingerprint
from nemo_rpo.training.process.rank0 import on_first_rank
from nemo_rpo.training.reference import file as reference_file
from nemo_rpo.training.reference import precompute
from nemo_rpo.training.reference.file import Logprobs, MadeWith
from nemo_rpo.training.reference.precompute import CachedReference


class Reference(Protocol):
    """Whatever puts reference log-probs into a batch: the engine's live reference, or a cached one."""

    def add_ref_policy_logprobs(self, batch: Batch) -> None:
        """Puts the reference's log-probs into the batch, in place."""


@dataclass(frozen=True)
class _CachedBesideLive:
    """A cached reference, and the previous iterate that the engine runs where the loss compares with one."""

    cached: CachedReference
    model: MegatronGPTRPOModel

    def add_ref_policy_logprobs(self, batch: Batch) -> None:
        self.cached.add_ref_policy_logprobs(batch)
        self.model.add_ref_policy_logprobs(batch)


def find_references(cfg: RunConfig, model: MegatronGPTRPOModel, splits: Mapping[str, Split]) -> dict[str, Reference]:
    """Where each split's reference log-probs, and those of a previous iterate, come from.

    Cached ones are read, or computed now: ``model`` must hold its starting weights.
    """
    if not model.needs.reference or model.needs.live_reference:
        return dict.fromkeys(splits, model)
    found: dict[str, Reference] = {}
    for name, split, path in reference_files(cfg, splits):
        logprobs = _read_or_compute(path, cfg, model, name, split)
        found[name] = _CachedBesideLive(CachedReference(logprobs), model)
    return {"train": found["sweep"], **found}


def reference_files(cfg: RunConfig, splits: Mapping[str, Split]) -> Iterator[tuple[str, Split, Path]]:
    """Each set of pairs once, with the file of its log-probs; that of ``sweep`` is for ``train``, the same pairs in
    another order.
    """
    folder = Path(cfg.model.rpo.reference_cache or run_folder(cfg) / "reference")
    for name, split in splits.items():
        if name != "train":
            yield name, split, folder / f"{_data_name(name).replace('/', '-')}.parquet"


def compute_and_write(
    path: Path, cfg: RunConfig, model: MegatronGPTRPOModel, name: str, split: Split, per_token: bool = False
) -> Logprobs:
    """Log-probs of a split under the reference's weights, which are the model's present ones unless it has a reference
    of its own; rank 0 writes them to ``path``. Collectives of
    :func:`~nemo_rpo.training.reference.precompute.compute`.
    """
    batches = split.dataset.batches(range(len(split.dataset)))
    with model.reference_in_place():
        logprobs = precompute.compute(model, batches, split.cache.scored_lengths(), per_token)
    on_first_rank(lambda: reference_file.write(path, logprobs, split.cache, made_with(cfg, name)))
    return logprobs


def _read_or_compute(path: Path, cfg: RunConfig, model: MegatronGPTRPOModel, name: str, split: Split) -> Logprobs:
    here = torch.tensor([float(path.exists())], device=model.device)
    dist.broadcast(here, 0)  # rank 0 decides for all: a file may appear between two looks
    if here.item():
        return reference_file.read(path, split.cache, made_with(cfg, name))
    return compute_and_write(path, cfg, model, name, split)


def made_with(cfg: RunConfig, name: str) -> MadeWith:
    """What the log-probs of a split depend on beside its pairs."""
    spec = cache_spec(cfg, _data_name(name))
    _, frozen = cfg.model.rpo.precisions()
    reference, base = reference_path(cfg), cfg.pretrained_checkpoint.restore_from_path
    return MadeWith(
        model={
            "weights": weights_fingerprint(reference),
            "precision": cfg.trainer.precision if frozen == "bf16" else frozen,
            **({"base": weights_fingerprint(base)} if cfg.model.peft.lora and reference != base else {}),  # an adapter
        },
        text={
            "tokenizer": spec.tokenizer.fingerprint(),
            "chat template": spec.tokenizer.template_fingerprint(),
            "truncation": f"{TRUNCATION_RULE} at {spec.seq_length} tokens",
        },
    )


def _data_name(split: str) -> str:
    return "train" if split == "sweep" else split
