"""Annotators on NeMo-RL's data path: from a column of the file to 1-D tensors of every batch.

Shapes: n pairs, B = 2n rows, chosen at even and rejected at odd places, as upstream interleaves them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch

from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.errors import DataError
from nemo_rpo.integrations.labelled_pairs import KNOWN_FIELDS, LabelledPairs, fingerprint, row_knowledge

UNKNOWN = -1  # the code of a row that names nobody
# What a batch carries beside upstream's keys, and where a processed row has it; ``idx`` is upstream's.
ROW_KEYS = {"annotator": "annotator", "pair_id": "pair_id", "row_index": "idx"}
_ROWS_AT_ONCE = 1000  # of the fingerprint
_TEXTS = 1 << 62  # integers below stand for themselves, texts for a hash above


def id_code(identity: str) -> int:
    """The int64 that stands for an id in a batch, the same in every process and every run.

    Batches carry tensors, and workers see no table. A decimal number stands for itself, any other text for 62 bits of
    its BLAKE2b.

    >>> id_code("17")
    17
    >>> id_code("017") > 2**62
    True
    """
    if identity.isascii() and identity.isdecimal() and str(int(identity)) == identity and int(identity) < _TEXTS:
        return int(identity)
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return _TEXTS | int.from_bytes(digest, "big") >> 2


def preference_processor(
    datum_dict: dict[str, Any],
    task_data_spec: Any,
    tokenizer: Any,
    max_seq_length: int,
    idx: int,
    annotator_key: str | None = "annotator",
    pair_id_key: str = "pair_id",
) -> dict[str, Any]:
    """Upstream's ``preference_preprocessor``, with the row's ``annotator`` and ``pair_id`` as whole numbers.

    A row whose two responses have the same tokens says nothing about either: it gets ``loss_multiplier`` 0, as upstream
    gives to over-long ones. A row that names no annotator is :data:`UNKNOWN`, which validation data may be; training
    refuses it. Without a pair id of its own a pair has its index in the data set.

    Args:
        datum_dict, task_data_spec, tokenizer, max_seq_length, idx: as upstream's.
        annotator_key: field of the annotator's id; None makes all labels one annotator's.
        pair_id_key: field of the pair's id.

    Raises:
        DataError: an id that is neither a text nor a whole number.
    """
    from nemo_rl.data.processors import preference_preprocessor

    row = preference_preprocessor(datum_dict, task_data_spec, tokenizer, max_seq_length, idx)
    fields = Fields(Record(str(getattr(task_data_spec, "task_name", "data")), idx + 1, datum_dict))
    annotator = VIRTUAL if annotator_key is None else fields.identity(annotator_key, required=False)
    pair_id = fields.identity(pair_id_key, required=False)
    if _tokens(row["message_log_chosen"]) == _tokens(row["message_log_rejected"]):
        row["loss_multiplier"] = 0.0
    row["annotator"] = UNKNOWN if annotator is None else id_code(annotator)
    row["pair_id"] = idx if pair_id is None else id_code(pair_id)
    return row


def preference_collate(data_batch: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
    """Upstream's ``preference_collate_fn`` with ``annotator``, ``pair_id`` and ``row_index``, the row's place in the
    data set, int64 [2n] each, behind its own keys.

    Behind, because a batch takes its size from its first key.
    """
    from nemo_rl.data.collate_fn import preference_collate_fn

    batch = preference_collate_fn(data_batch, *args, **kwargs)
    for key, of_row in ROW_KEYS.items():
        batch[key] = torch.tensor([row[of_row] for row in data_batch], dtype=torch.int64).repeat_interleave(2)
    return batch


def labelled_pairs(dataset: Any, annotator_key: str | None) -> LabelledPairs:
    """Who labelled each pair of the training data, and what is known of the labels; no text is read.

    Args:
        dataset: upstream's ``AllTaskProcessedDataset``, or any sequence of rows.
        annotator_key: as for :func:`preference_processor`.

    Raises:
        DataError: the data has no such field, or a row leaves it empty; or two ids share a code.
    """
    dataset = _rows_of(dataset)
    if annotator_key is None:
        return LabelledPairs.of_one(len(dataset), "data:1")
    pairs = LabelledPairs()
    for record in _records(dataset, annotator_key):
        fields = Fields(record)
        details, facts = row_knowledge(fields)
        pairs.add(record.where, [(fields.identity(annotator_key, required=True), 1)], [details], facts)
    ids = pairs.table().ids
    if len({id_code(name) for name in ids}) != len(ids):
        raise DataError("two annotator ids have the same 62-bit hash: rename one of them")
    return pairs


def data_fingerprint(dataset: Any) -> str:
    """A digest of the rows in their order, see :func:`fingerprint`."""
    dataset = _rows_of(dataset)
    if not hasattr(dataset, "column_names"):
        return fingerprint(dataset[i] for i in range(len(dataset)))
    return fingerprint(dataset[start : start + _ROWS_AT_ONCE] for start in range(0, len(dataset), _ROWS_AT_ONCE))


def _rows_of(dataset: Any) -> Any:
    """What upstream's data set tokenises row by row."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def _records(dataset: Any, annotator_key: str) -> Iterable[Record]:
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        for i in range(len(dataset)):
            yield Record("data", i + 1, dataset[i])
        return
    if annotator_key not in columns:
        raise DataError(
            f"the training data has no field '{annotator_key}'; it has {', '.join(columns)}. Set "
            "dpo.robust.annotator_key to the field with the annotator, or to null if there is none "
            "(NeMo-RL's BinaryPreferenceDataset drops fields that are not its own: use PreferenceDataset)"
        )
    read = [annotator_key, *(name for name in KNOWN_FIELDS if name in columns)]
    for i, values in enumerate(zip(*(dataset[name] for name in read), strict=True)):
        yield Record("data", i + 1, dict(zip(read, values, strict=True)))


def _tokens(message_log: list[dict[str, Any]]) -> list[int]:
    return torch.cat([torch.as_tensor(message["token_ids"]) for message in message_log]).tolist()
