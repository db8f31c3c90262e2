"""Preference files as ``config.dataset`` of Megatron-Bridge: pairs with their votes, read by this package's data room.

An item is a pair, a micro-batch is made by :func:`nemo_rpo.data.batches.padded.collate`, and
``train.global_batch_size`` counts pairs. Bridge's ``single`` loader walks through the positions of a run, and
:class:`GlobalBatchSampler` decides which pair stands at a position: a run sees the pairs that this package's own engine
would, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from torch import Tensor

from nemo_rpo.config.schema import DataConfig, ModelConfig
from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.batches.padded import collate, padded_length
from nemo_rpo.data.batches.sampler import PADDING, GlobalBatchSampler
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import PreferenceCache, TokenizedPair
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import ConfigError, DataError

_POSITIONS = 1 << 40  # no run gets so far: Bridge says when it ends
Row = tuple[TokenizedPair, int]


class PreferencePairs(torch.utils.data.Dataset):
    """The pairs of a run by position: what is at the i-th place in the order in which they are trained on.

    Args:
        cache: the pairs. sampler: their order.
        seq_length: no micro-batch is longer. multiple_of: the length of each is a multiple of it.
    """

    def __init__(self, cache: PreferenceCache, sampler: GlobalBatchSampler, seq_length: int, multiple_of: int) -> None:
        self.cache, self.sampler = cache, sampler
        self.seq_length, self.multiple_of = seq_length, multiple_of

    def __len__(self) -> int:
        return _POSITIONS

    def __getitem__(self, position: int) -> Row:
        """The pair and its index in the data; :data:`PADDING`, and any pair, where an evaluation's last batch ends."""
        step, place = divmod(position, self.sampler.global_batch_size)
        index = int(self.sampler.batch(step)[place])
        return self.cache.pair(0 if index == PADDING else index), index

    def collate_fn(self, rows: list[Row]) -> dict[str, Tensor]:
        """A micro-batch as long as its own longest pair."""
        pairs, index = [pair for pair, _ in rows], np.array([index for _, index in rows])
        lengths = np.array([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs])
        length = padded_length(lengths, self.multiple_of, self.seq_length)
        return collate(pairs, index, index != PADDING, length, self.cache.pad_id, self.cache.max_votes)

    def micro_batches(self, first: int, count: int, size: int, rank: int, ranks: int) -> Iterator[dict[str, Tensor]]:
        """What Bridge's loader gives data-parallel rank ``rank`` of ``ranks`` from position ``first`` on."""
        for micro_batch in range(count):
            start = first + (micro_batch * ranks + rank) * size
            yield self.collate_fn([self[position] for position in range(start, start + size)])


@dataclass
class PreferenceDatasetProvider(DatasetProvider):
    """``config.dataset``. Names and defaults are those of this package's ``model.data``.

    Attributes:
        data_prefix: ``train`` and, optionally, ``validation``: a file or a list of files each, in any layout that this
            package reads (JSONL, JSONL.gz, Parquet).
        seq_length: tokens of prompt + response; ``config.model.seq_length``.
        tokenizer_folder: a Hugging Face folder; None: ``config.tokenizer.tokenizer_model``.
        use_chat_template: render plain texts with the chat template too; messages always are.
        layout, pair_id_key, columns, group_votes, invalid_pairs, pad_length_to_multiple_of, cache_dir: as in
            ``model.data``.
        seed: of the order of the pairs.
        dataloader_type: ``single``; :class:`PreferencePairs` shuffles and goes on from epoch to epoch by itself.

    The field with the annotator's id is ``annotator_key`` of the block ``rpo``.
    """

    data_prefix: dict[str, Any] = field(default_factory=dict)
    seq_length: int = ModelConfig.encoder_seq_length
    tokenizer_folder: str | None = None
    use_chat_template: bool = False
    layout: str = DataConfig.layout
    pair_id_key: str = DataConfig.pair_id_key
    columns: dict[str, str] = field(default_factory=dict)
    group_votes: bool = DataConfig.group_votes
    invalid_pairs: str = DataConfig.invalid_pairs
    pad_length_to_multiple_of: int = DataConfig.pad_length_to_multiple_of
    cache_dir: str | None = DataConfig.cache_dir
    seed: int = ModelConfig.seed
    dataloader_type: str | None = "single"

    def __post_init__(self) -> None:
        self._splits: dict[str, PreferencePairs] = {}  # no field: what is open does not belong in a saved config

    def open(self, cfg: Any, annotator_key: str | None, keep_ties: bool) -> dict[str, PreferenceCache]:
        """The token caches of all splits by name, built first where there are none yet; called on every rank.

        The training data come first, and validation's annotators are indexed by theirs.

        Args:
            cfg: Bridge's ``ConfigContainer``.
            annotator_key: field of the annotator's id; None: there are no ids, and all labels are one annotator's.
            keep_ties: the loss has a value for them.

        Raises:
            ConfigError: no training file, or a tokenizer with ids that the model does not have.
            DataError: a row that does not fit, or one of the training data that names no annotator.
        """
        if "train" not in self.data_prefix or self.data_prefix.keys() - {"train", "validation"}:
            raise ConfigError(f"dataset.data_prefix must name 'train', may name 'validation'; got {self.data_prefix}")
        caches = {
            split: self._open_split(cfg, split, annotator_key, keep_ties)
            for split in ("train", "validation")
            if self.data_prefix.get(split)
        }
        if annotator_key is None:
            only = Annotator(VIRTUAL, caches["train"].report["votes"], caches["train"].where(0))
            caches["train"].use_annotators(AnnotatorTable([only]), unknown=0)
        else:
            _check_annotators(caches["train"], annotator_key)
        return caches

    def _open_split(self, cfg: Any, split: str, annotator_key: str | None, keep_ties: bool) -> PreferenceCache:
        files = self.data_prefix[split]
        key = annotator_key if split == "train" and annotator_key is not None else RowFormat.annotator_key
        folder = self.tokenizer_folder or cfg.tokenizer.tokenizer_model
        if folder is None:
            raise ConfigError("dataset.tokenizer_folder is not set: give the folder of a Hugging Face tokenizer")
        spec = CacheSpec(
            paths=[files] if isinstance(files, str) else files,
            keys=RowFormat(self.layout, key, self.pair_id_key, self.columns),
            tokenizer=TokenizerSpec(str(folder), self.use_chat_template),
            seq_length=self.seq_length,
            group_votes=self.group_votes,
            invalid_pairs=self.invalid_pairs,
            keep_ties=keep_ties,
        )
        cache_dir = Path(self.cache_dir) if self.cache_dir else None
        cache = open_cache(spec, cache_dir, num_workers=max(self.num_workers, 1))
        if cache.max_responses > 2:
            raise DataError(
                f"{spec.paths[0]} has rankings of up to {cache.max_responses} responses, and this recipe takes pairs: "
                "split them with nemo-rpo convert --to hf"
            )
        if cache.judged_alone():
            raise DataError(
                f"{spec.paths[0]} has completions judged alone, and this recipe takes pairs: train on them with this "
                "package's own engine"
            )
        if cache.max_token_id >= cfg.model.vocab_size:
            raise ConfigError(
                f"the tokenizer in {folder} gives ids up to {cache.max_token_id}, but the model's vocabulary has "
                f"{cfg.model.vocab_size}: set dataset.tokenizer_folder to the model's own"
            )
        return cache

    def use(self, cfg: Any, caches: dict[str, PreferenceCache]) -> dict[str, PreferencePairs]:
        """The data sets over ``caches``: the training pairs shuffled, the validation pairs in file order, over and
        over."""
        multiple_of = self.pad_length_to_multiple_of
        if cfg.model.sequence_parallel:  # each tensor-parallel rank holds an equal slice of the sequence
            multiple_of *= cfg.model.tensor_model_parallel_size
        self._splits = {}
        for split, cache in caches.items():
            training = split == "train"
            size = cfg.train.global_batch_size if training else cfg.validation.eval_global_batch_size
            sampler = GlobalBatchSampler(len(cache), size, self.seed, shuffle=training, drop_last=training)
            self._splits[split] = PreferencePairs(cache, sampler, self.seq_length, multiple_of)
        return self._splits

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Training and validation pairs, no test pairs; Bridge calls it after the callbacks have opened them."""
        if not self._splits:
            raise ConfigError("the preference data are not open: pass RPOCallback(step) in the callbacks of finetune")
        return self._splits["train"], self._splits.get("validation"), None


def _check_annotators(cache: PreferenceCache, annotator_key: str) -> None:
    if missing := cache.report["votes_without_annotator"]:
        first = cache.annotators.annotators[cache.annotators.index(VIRTUAL)].first_seen
        raise DataError(
            f"{first}: the row names no annotator in its field '{annotator_key}' ({missing} labels do not); set "
            "rpo.annotator_key to the field that does, or to null if there is none"
        )
