"""The index of a distributed checkpoint, ``.metadata``, read without running code from it.

Torch writes the index as a pickle, and unpickling can run any code. The unpickler here only builds classes on an
allow-list, all plain records of torch, and refuses a file that names anything else. Data files are read with torch's
restricted reader, which only builds tensors; entries that the index does not call tensors are never read.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.run_file import or_another

INDEX_FILE = ".metadata"

_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "torch": {"Size", "layout", "dtype", "memory_format", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "torch.distributed._shard.metadata": {"ShardMetadata"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # A dtype is written by its name in torch.
        if name in _RECORDS.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of a checkpoint needs")


class StoredTensor(NamedTuple):
    """A whole tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Index = dict[str, StoredTensor]


def read_index(folder: Path) -> Index:
    """Every tensor in the checkpoint by its key. Runs no code of the file; issues no collective.

    Raises :class:`CheckpointError` if there is no index, or one that is damaged or names what it has no need of.
    """
    path = folder / INDEX_FILE
    try:
        with path.open("rb") as file:
            entries = _Unpickler(file).load().state_dict_metadata.items()
        return {
            key: StoredTensor(tuple(entry.size), entry.properties.dtype)
            for key, entry in entries
            if type(entry).__name__ == "TensorStorageMetadata"
        }
    except Exception as exc:  # a damaged pickle fails in any way
        sentence = " ".join(str(exc).split()) or type(exc).__name__
        raise CheckpointError(f"{path} cannot be read ({sentence}): {or_another(folder)}") from exc
