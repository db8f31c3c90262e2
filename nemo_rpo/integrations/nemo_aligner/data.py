"""Annotators on NeMo-Aligner's data path: from a field of the JSONL file to a tensor of every batch.

Upstream's data sets and collate functions drop fields that they do not know, so both are wrapped here. Shapes: N pairs
of the training files; B pairs of a batch; a batch of packs has B packs of up to P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo_aligner.data.nlp.builders import build_train_valid_test_datasets
from nemo_aligner.data.nlp.datasets import DPOModelDataset, DPOPackedDataset
from torch import Tensor

from nemo_rpo.data.annotator_table import VIRTUAL, AnnotatorTable
from nemo_rpo.data.files.read import Record, as_paths, read_records
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.digests import digest_of
from nemo_rpo.em import Votes
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.integrations.labelled_pairs import LabelledPairs, fingerprint, row_knowledge
from nemo_rpo.integrations.nemo_aligner.aligner_settings import BLOCK, annotator_key
from nemo_rpo.integrations.rpo_block import NO_COLUMNS

NO_PAIR = -1  # fills up packs of fewer pairs; index of a pair that is not among the training pairs


class AnnotatedDPODataset(DPOModelDataset):
    """Upstream's rows with ``annotator``, the id of who labelled them (None where the row names nobody), and ``place``:
    their file, and which of its pairs they are.
    """

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        super().__init__(cfg, **kwargs)
        self.annotator_key, self.file = annotator_key(cfg), str(kwargs["data_prefix"])

    def __getitem__(self, idx: int) -> dict[str, Any]:
        row = super().__getitem__(idx) | {"place": (self.file, int(idx))}
        if self.annotator_key is None:
            return {**row, "annotator": VIRTUAL}
        record = Record(self.file, int(idx) + 1, self.data[idx])
        return {**row, "annotator": Fields(record).identity(self.annotator_key, required=False)}


class AnnotatedPackedDataset(DPOPackedDataset):
    """Upstream's packs with ``annotator``, a list of ids, one a pair in the order in which they are packed, and
    ``place``: their file, and which of its pairs is their first.
    """

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        super().__init__(cfg, **kwargs)
        self.annotator_key, self.file = annotator_key(cfg), str(kwargs["data_prefix"])
        self.first_pair = np.cumsum([0, *(_pairs_of_pack(pack) for pack in self.data)])

    def __getitem__(self, idx: int) -> dict[str, Any]:
        pack = super().__getitem__(idx)
        annotator = _ids_of_pack(pack, self.annotator_key, f"{self.file}:{int(idx) + 1}")
        return {**pack, "annotator": annotator, "place": (self.file, int(self.first_pair[idx]))}


def annotated_datasets(cfg: Any, **kwargs: Any) -> Any:
    """Upstream's ``build_train_valid_test_dpo_datasets`` (or, for packs, its packed sibling) with annotators.

    Args:
        cfg: the section ``model``. kwargs: as upstream's.

    Raises:
        ConfigError: a ``data_impl`` whose rows have no place for an annotator.
    """
    impl = kwargs["data_impl"]
    if impl == "packed_jsonl":
        return build_train_valid_test_datasets(AnnotatedPackedDataset, cfg=cfg, **kwargs)
    if not impl.startswith("json"):
        raise ConfigError(f"model.data.data_impl={impl} carries no annotators: set jsonl or packed_jsonl")
    return build_train_valid_test_datasets(AnnotatedDPODataset, cfg=cfg, **kwargs)


@dataclass(frozen=True)
class TrainingLabels:
    """Who labelled which pair of the training files; every rank reads the same.

    Attributes:
        pairs: the labels of all N pairs, file after file.
        annotators: who stands behind each index.
        first: of each file, by its name, the index of its first pair.
        fingerprint: equal for files of the same content in the same order, and the same field of annotators.
    """

    pairs: LabelledPairs
    annotators: AnnotatorTable
    first: dict[str, int]
    fingerprint: str

    def votes(self, block: slice) -> Votes:
        """The labels of a run of pairs, by index in ``annotators``."""
        return self.pairs.votes_of(self.annotators, block)


def training_labels(cfg: Any) -> TrainingLabels:
    """Reads who labelled the pairs of the training files; the table of annotators is sorted by id.

    Args:
        cfg: the section ``model``; its ``data.data_prefix.train`` lists one file, or weights and files in turn.

    Raises:
        ConfigError: ``data.columns`` is set, which NeMo-Aligner's readers know nothing of.
        DataError: a file that is not there, or a row that names no annotator.
    """
    if cfg.data.get("columns"):
        raise ConfigError(f"model.data.columns: {NO_COLUMNS}")
    listed, key = list(cfg.data.data_prefix.train), annotator_key(cfg)
    files = as_paths(listed if len(listed) == 1 else listed[1::2], setting="model.data.data_prefix.train")
    ids_of = _ids_of_packs if cfg.data.data_impl == "packed_jsonl" else _ids_of_rows
    pairs, first = LabelledPairs(), {}
    for file in dict.fromkeys(files):  # one that is listed twice has the same pairs twice
        first[str(file)] = len(pairs)
        for identity, where, *known in ids_of(file, key):
            pairs.add(where, [(identity, 1)], *known)
    content = (digest_of(Path(file)) for file in first)
    return TrainingLabels(pairs, pairs.table(), first, fingerprint([key, *content]))


class AnnotatorCollate:
    """Upstream's collate function, whose batch gets ``annotator`` and ``pair_index`` int64 and ``valid`` bool, [B]
    each, [B, P] of packs.

    A pair carries no evidence, and is not valid, where a response has no label (upstream blanks pairs that are too
    long), or where both have the same. Annotators without an η, and rows that name none, get index K: evaluation takes
    them as reliable as all were at the start, and training refuses them. ``pair_index`` is the pair's place among all
    training pairs, -1 of a pair from another file.

    Args:
        collate: upstream's function. labels: of the training pairs, under the table of the K annotators with an η.
    """

    def __init__(self, collate: Callable, labels: TrainingLabels) -> None:
        self.collate, self.labels = collate, labels

    def __call__(self, batch: list[dict[str, Any]], **kwargs: Any) -> dict[str, Tensor]:
        collated = self.collate(batch, **kwargs)
        try:
            identities, first = [row["annotator"] for row in batch], [self._pair_index(*row["place"]) for row in batch]
        except KeyError:
            raise DataError("the rows carry no annotator: build the data sets with annotated_datasets") from None
        if "input_ids" in collated:
            width = max(map(len, identities))
            padded = [[*map(self._index, ids), *[NO_PAIR] * (width - len(ids))] for ids in identities]
            annotator, of_first = torch.tensor(padded), torch.tensor(first).unsqueeze(-1)
            valid = annotator != NO_PAIR
            pair_index = torch.where(valid & (of_first != NO_PAIR), of_first + torch.arange(width), NO_PAIR)
            return {**collated, "annotator": annotator.clamp(min=0), "pair_index": pair_index, "valid": valid}
        chosen, rejected = collated["chosen_labels"], collated["rejected_labels"]
        valid = (chosen >= 0).any(-1) & (rejected >= 0).any(-1) & (chosen != rejected).any(-1)
        annotator = torch.tensor([self._index(one) for one in identities])
        return {**collated, "annotator": annotator, "pair_index": torch.tensor(first), "valid": valid}

    def _index(self, identity: str | None) -> int:
        table = self.labels.annotators
        return table.index(identity) if identity in table else len(table)

    def _pair_index(self, file: str, pair: int) -> int:
        first = self.labels.first.get(str(Path(file)))
        return NO_PAIR if first is None else first + pair


def _ids_of_rows(file: Path, annotator_key: str | None) -> Iterator[tuple[Any, ...]]:
    for record in read_records(file):
        if isinstance(record, DataError):
            raise record
        if annotator_key is None:
            yield VIRTUAL, record.where
        elif annotator_key in record.fields:
            details, facts = row_knowledge(Fields(record))
            yield Fields(record).identity(annotator_key, required=True), record.where, [details], facts
        else:
            raise DataError(
                f"{record.where}: the row has no field '{annotator_key}'; it has {', '.join(record.fields)}. Set "
                f"{BLOCK}.annotator_key to the field with the annotator, or to null if there is none"
            )


def _ids_of_packs(file: Path, annotator_key: str | None) -> Iterator[tuple[str, str]]:
    for row, pack in enumerate(np.load(file, allow_pickle=True), start=1):  # upstream's format
        where = f"{file}:{row}"
        for identity in _ids_of_pack(pack, annotator_key, where):
            yield identity, where


def _pairs_of_pack(pack: dict[str, Any]) -> int:
    return len(pack["lengths"]) // 2


def _ids_of_pack(pack: dict[str, Any], annotator_key: str | None, where: str) -> list[str]:
    pairs = _pairs_of_pack(pack)
    if annotator_key is None:
        return [VIRTUAL] * pairs
    found = list(pack.get(annotator_key, ()))
    if len(found) != pairs or None in found:
        raise DataError(
            f"{where}: the pack of {pairs} pairs names {len(found)} annotators in its field '{annotator_key}': it must "
            f"list one a pair, in the order in which they are packed; {BLOCK}.annotator_key=null if there are none"
        )
    return [str(one) for one in found]
