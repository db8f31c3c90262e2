"""From a configuration to the data of a run: its tokenizer, the token cache of every split, the order of its pairs."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from nemo_rpo.config.lengths import length_multiple
from nemo_rpo.config.loss import base_loss
from nemo_rpo.config.places import run_folder
from nemo_rpo.config.schema import ModelConfig, RunConfig
from nemo_rpo.config.splits import is_validation, split_files
from nemo_rpo.data.batches.dataset import PreferenceDataset
from nemo_rpo.data.batches.mismatched import Mismatched
from nemo_rpo.data.batches.sampler import GlobalBatchSampler
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec, cache_key
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import ConfigError, RPOError
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.batch.loss_inputs import StepNeeds
from nemo_rpo.megatron.checkpoint.nemo.archive import is_nemo
from nemo_rpo.megatron.checkpoint.nemo.config import read_nemo_config
from nemo_rpo.training.day_of_run import template_date
from nemo_rpo.training.packing import packing_of
from nemo_rpo.training.process.rank0 import once_a_node


@dataclass(frozen=True)
class Split:
    """One split of the data: its pairs (or rankings) and their order."""

    cache: PreferenceCache
    dataset: PreferenceDataset

    def lengths(self, data_step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each text (a response with its prompt) of one global batch, and those of its response, int64
        ``[texts]``.
        """
        lengths = self.cache.ranking_lengths[self.dataset.sampler.batch(data_step)]
        prompts, responses = lengths[:, :1], lengths[:, 1:]
        there = responses > 0
        return (prompts + responses)[there], responses[there]

    def tokens(self, data_step: int) -> int:
        """Tokens of one global batch, all responses with their prompts."""
        texts, _ = self.lengths(data_step)
        return int(texts.sum())


def tokenizer_spec(cfg: RunConfig) -> TokenizerSpec:
    """The tokenizer of ``model.tokenizer``; where that names none, the one that the checkpoint names.

    Raises :class:`ConfigError` where neither does, or the checkpoint's is not on this machine.
    """
    settings, start = cfg.model.tokenizer, cfg.pretrained_checkpoint.restore_from_path
    if settings.library == "huggingface" and settings.type is None:
        if start is None:
            raise ConfigError("model.tokenizer.type is not set: give the folder of a Hugging Face tokenizer")
        named = _named_in_nemo(start) if is_nemo(start) else {"type": start}
        settings = replace(settings, **named)
    folder, kind = (settings.type, None) if settings.library == "huggingface" else (None, settings.type)
    return TokenizerSpec(
        folder=folder,
        use_chat_template=settings.use_chat_template,
        library=settings.library,
        type=kind,
        model=settings.model,
        vocab_file=settings.vocab_file,
        merge_file=settings.merge_file,
        sentencepiece_legacy=settings.sentencepiece_legacy,
        date=template_date(settings, run_folder(cfg)),
        trust_remote_code=settings.trust_remote_code,
        end_responses=settings.end_responses,
    )


def _named_in_nemo(path: str) -> dict[str, Any]:
    """What a ``.nemo`` says of its tokenizer, as long as it names what is on this machine and not inside the file."""
    said = read_nemo_config(path).get("tokenizer") or {}
    library, kind = said.get("library"), said.get("type")
    files = {key: said[key] for key in ("model", "vocab_file", "merge_file") if said.get(key)}
    if library == "huggingface" and kind and os.path.isdir(kind):
        return {"type": kind}
    if library in ("sentencepiece", "megatron") and files and all(map(os.path.isfile, files.values())):
        legacy = bool(said.get("sentencepiece_legacy"))
        return {"library": library, "type": kind, **files, "sentencepiece_legacy": legacy}
    inside = [file.removeprefix("nemo:") for file in files.values() if file.startswith("nemo:")]
    if inside:
        raise ConfigError(
            f"model.tokenizer is not set, and {path} holds its tokenizer inside ({', '.join(inside)}): unpack it with "
            f"tar -xf, set model.tokenizer.library={library} and name it by model.tokenizer.{', '.join(files)}"
        )
    named = f"{kind} of library {library}" if kind else f"one of library {library}"
    raise ConfigError(
        f"model.tokenizer.type is not set, and {path} names a tokenizer that is not a directory on this machine "
        f"({named}): give the folder of the same tokenizer in Hugging Face's form"
    )


def cache_spec(cfg: RunConfig, split: str) -> CacheSpec:
    """What decides the tokens of a split of :func:`nemo_rpo.config.splits.split_files`."""
    data = cfg.model.data
    return CacheSpec(
        paths=split_files(data)[split],
        keys=RowFormat(data.layout, data.annotator_key, data.pair_id_key, data.columns, data.players)
        if split == "train"
        else RowFormat(data.layout, columns=data.columns, players=data.players),
        tokenizer=tokenizer_spec(cfg),
        seq_length=data.seq_length or cfg.model.encoder_seq_length,
        # Held-out labels are each judged by their own annotator's group.
        group_votes=data.group_votes and (split == "train" or base_loss(cfg.model).groups == 1),
        invalid_pairs=data.invalid_pairs,
        keep_ties=base_loss(cfg.model).takes_ties,
    )


def open_split(cfg: RunConfig, split: str) -> PreferenceCache:
    """The token cache of a split of :func:`nemo_rpo.config.splits.split_files`, built if there is none yet.

    Collective over the world: one rank of every node reads the data files, since a terabyte read by eight ranks is
    eight.
    """
    data = cfg.model.data
    cache_dir = Path(data.cache_dir) if data.cache_dir else None
    spec = cache_spec(cfg, split)
    key = once_a_node(lambda: cache_key(spec.ingredients()))
    cache = _open_together(spec, cache_dir, num_workers=data.num_workers, progress=_say_progress(split), key=key)
    _check_kind(cfg, cache, spec.paths[0])
    if cache.max_responses > 2 and (data.default_chosen_reward, data.default_rejected_reward) != (None, None):
        raise ConfigError(
            f"{spec.paths[0]} has rankings of up to {cache.max_responses} responses, and default rewards are of two: "
            "unset model.data.default_chosen_reward and default_rejected_reward, and give the rankings rewards"
        )
    return cache


def _check_kind(cfg: RunConfig, cache: PreferenceCache, path: Path) -> None:
    """Raises :class:`RPOError` where the loss takes pairs and the data are completions judged alone, or the reverse."""
    loss, alone = base_loss(cfg.model), cache.judged_alone()
    if alone and not loss.unpaired:
        raise ConfigError(
            f"{path} has completions judged alone, and the loss '{loss.name}' takes pairs: set model.rpo.base_loss to "
            "kto, bco or apo_zero_unpaired"
        )
    if loss.unpaired and not alone:
        raise ConfigError(
            f"{path} has pairs, and the loss '{loss.name}' takes completions judged alone: choose another loss, or "
            "convert the pairs with nemo-rpo convert --to unpaired"
        )


def _open_together(spec: CacheSpec, cache_dir: Path | None, **options: Any) -> PreferenceCache:
    """:func:`open_cache`, whose files are compared with their digests once a node: its ranks share them out.

    One short object a rank is gathered over the world. Raises the :class:`RPOError` of any rank on every rank: a node
    may have a disk of its own.
    """
    cache: PreferenceCache | None = None
    failure: RPOError | None = None
    try:
        cache = open_cache(spec, cache_dir, check=False, **options)
        cache.check(int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except RPOError as exc:
        failure = exc
    found: list[RPOError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, failure)
    first = next((exc for exc in found if exc is not None), None)
    if first is not None:
        raise first
    return cache


def _say_progress(split: str, every: float = 10.0) -> Callable[[int, int], None]:
    """Says how far tokenising is, every ten seconds: a million pairs take minutes, and silence looks like a hang."""
    began = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > every:
            last = now
            print(
                f"tokenising {split}: {done:,} of {total:,} rows, {done / (now - began):,.0f} a second", file=sys.stderr
            )

    return say


def dataset_of(cfg: RunConfig, cache: PreferenceCache, shuffle: bool) -> PreferenceDataset:
    """Shuffled global batches for training; in file order, the last one filled up, for anything that measures."""
    model = cfg.model
    sampler = GlobalBatchSampler(
        cache.rankings, model.global_batch_size, model.seed, shuffle=shuffle, drop_last=shuffle
    )
    seq_length = model.data.seq_length or model.encoder_seq_length
    of_rank = partial(
        PreferenceDataset,
        sampler=sampler,
        data_parallel_rank=parallel.data_parallel_rank(),
        data_parallel_size=parallel.data_parallel_size(),
        micro_batch_size=model.micro_batch_size,
        seq_length=seq_length,
        pad_to_multiple_of=math.lcm(model.data.pad_length_to_multiple_of, length_multiple(model)),
        same_length=model.pipeline_model_parallel_size > 1 or _gathers_tokens_of_all(model),
        packing=packing_of(cfg, cache.ranking_lengths),
    )
    mismatched = None
    if StepNeeds.of(base_loss(model), model).reference_point == "mismatched_kl":
        mismatched = of_rank(Mismatched(cache, seq_length))
    return of_rank(cache, mismatched=mismatched)


def _gathers_tokens_of_all(model: ModelConfig) -> bool:
    """Whether expert ranks gather each other's tokens, of which all must then have as many."""
    return model.expert_model_parallel_size > 1 and model.moe_token_dispatcher_type == "allgather"


def open_splits(cfg: RunConfig) -> dict[str, Split]:
    """``train`` (shuffled), ``sweep`` (the training pairs in order) and, where there are files, ``validation``, or
    ``validation/NAME`` of each named set.
    """
    train = open_split(cfg, "train")
    splits = {
        "train": Split(train, dataset_of(cfg, train, shuffle=True)),
        "sweep": Split(train, dataset_of(cfg, train, shuffle=False)),
    }
    for name in filter(is_validation, split_files(cfg.model.data)):
        validation = open_split(cfg, name)
        splits[name] = Split(validation, dataset_of(cfg, validation, shuffle=False))
    return splits
