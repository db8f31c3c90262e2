"""Weights that Megatron's ``torch_dist`` format holds: ``.metadata`` says which bytes of which file are which piece.

``.metadata`` is a pickle, and a pickle can run code; here it can name no more than the classes that describe tensors.
Pieces are read with ``weights_only=True``, and the pickle ``common.pt`` is not read at all.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from nemo_rpo.errors import CheckpointError, first_line
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.mapping import LAYERS, key_of, name_of
from nemo_rpo.megatron.checkpoint.nemo.weights import NemoWeights, Piece, holds_weights

FOLDER = "model_weights"
INDEX = f"{FOLDER}/.metadata"
PREFIX = "model."
_METADATA = "torch.distributed.checkpoint.metadata"
_HARMLESS = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),  # torch.strided from its name
    ("collections", "OrderedDict"),
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch", "Size"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        named = getattr(torch, name, None) if module == "torch" else None
        if (module, name) in _HARMLESS or isinstance(named, torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class TorchDistWeights(NemoWeights):
    """The tensors in ``model_weights/`` of ``archive``. Raises :class:`CheckpointError` if their index is damaged."""

    def __init__(self, archive: NemoArchive) -> None:
        super().__init__(archive)
        self._chunks: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], Any]]] = {}
        pickled = archive.read(INDEX)
        try:
            index = _Unpickler(io.BytesIO(pickled)).load()
            stored, self._places = index.state_dict_metadata, index.storage_data
            for fqn, tensor in stored.items():
                if holds_weights(fqn) and hasattr(tensor, "chunks"):
                    self._add(fqn, tensor)
        except Exception as exc:  # a damaged pickle fails in any way, or holds anything
            raise CheckpointError(f"{archive.path}: {INDEX} is not an index of tensors ({first_line(exc)})") from exc

    def _add(self, fqn: str, tensor: Any) -> None:
        key, layer = key_of(fqn.removeprefix(PREFIX))
        stacked = key.startswith(LAYERS) and layer is None  # the first axis is the layer
        for chunk in tensor.chunks:
            offset, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            where = (fqn, torch.Size(offset))
            for at in range(offset[0], offset[0] + sizes[0]) if stacked else (None,):
                name = name_of(key, at) if stacked else name_of(key, layer)
                cut = int(stacked)
                self.shapes[name] = tuple(tensor.size)[cut:]
                row = at - offset[0] if stacked else None
                self._chunks.setdefault(name, []).append((offset[cut:], sizes[cut:], (where, sizes, row)))

    def pieces(self, name: str) -> Iterator[Piece]:
        for offset, shape, source in self._chunks[name]:
            yield Piece(offset, shape, lambda source=source: self._load(*source))

    def _load(self, where: tuple[str, torch.Size], sizes: tuple[int, ...], row: int | None) -> Tensor:
        place = self._places[MetadataIndex(*where)]
        stream = self.archive.stream(f"{FOLDER}/{place.relative_path}", place.offset, place.length)
        data = torch.load(stream, map_location="cpu", weights_only=True).view(sizes)
        return data if row is None else data[row]
