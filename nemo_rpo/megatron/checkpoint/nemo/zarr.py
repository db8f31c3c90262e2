"""Weights that Megatron's older ``zarr`` format holds: a folder a tensor, an uncompressed file a block of its grid."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.mapping import LAYERS, key_of, name_of
from nemo_rpo.megatron.checkpoint.nemo.torch_dist import FOLDER, PREFIX
from nemo_rpo.megatron.checkpoint.nemo.weights import NemoWeights, Piece, holds_weights

_HEADER = "/.zarray"
_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "bfloat16": torch.bfloat16, "<V2": torch.bfloat16}


class ZarrWeights(NemoWeights):
    """The tensors in ``model_weights/`` of ``archive``. Raises :class:`CheckpointError` for one of another kind."""

    def __init__(self, archive: NemoArchive) -> None:
        super().__init__(archive)
        self._of: dict[str, tuple[str, int | None, dict]] = {}
        for file in sorted(archive.names):
            if file.startswith(f"{FOLDER}/") and file.endswith(_HEADER) and holds_weights(file):
                self._add(file.removesuffix(_HEADER), _header(archive, file))

    def _add(self, folder: str, header: dict) -> None:
        if header["compressor"] is not None or header["order"] != "C" or header["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{self.archive.path}: {folder} is stored as {header['dtype']}, order {header['order']}, compressor "
                f"{header['compressor']}; NeMo writes uncompressed floats: save the model again"
            )
        key, layer = key_of(folder.removeprefix(f"{FOLDER}/{PREFIX}"))
        shape = tuple(header["shape"])
        if key.startswith(LAYERS) and layer is None:
            for at in range(shape[0]):
                self.shapes[name_of(key, at)], self._of[name_of(key, at)] = shape[1:], (folder, at, header)
        else:
            self.shapes[name_of(key, layer)], self._of[name_of(key, layer)] = shape, (folder, None, header)

    def pieces(self, name: str) -> Iterator[Piece]:
        folder, layer, header = self._of[name]
        shape, block = header["shape"], header["chunks"]
        counts = [range(math.ceil(size / step)) for size, step in zip(shape, block, strict=True)]
        if layer is not None:
            counts[0] = range(layer // block[0], layer // block[0] + 1)
        cut = int(layer is not None)
        for cell in itertools.product(*counts):
            offset = tuple(index * step for index, step in zip(cell, block, strict=True))
            ends = (min(start + step, size) for start, step, size in zip(offset, block, shape, strict=True))
            sizes = tuple(end - start for start, end in zip(offset, ends, strict=True))
            row = None if layer is None else layer - offset[0]
            file = f"{folder}/{header.get('dimension_separator', '.').join(map(str, cell))}"
            yield Piece(
                offset[cut:],
                sizes[cut:],
                lambda file=file, sizes=sizes, row=row, header=header: self._load(file, header, sizes, row),
            )

    def _load(self, file: str, header: dict, sizes: tuple[int, ...], row: int | None) -> Tensor:
        data, dtype = bytearray(self.archive.read(file)), _DTYPES[header["dtype"]]
        if len(data) != math.prod(header["chunks"]) * dtype.itemsize:
            raise CheckpointError(f"{self.archive.path}: {file} is cut short; restore it, or save the model again")
        whole = torch.frombuffer(data, dtype=dtype).view(header["chunks"])
        data = whole[tuple(slice(size) for size in sizes)]  # blocks at the edge are stored whole
        return data if row is None else data[row]


def _header(archive: NemoArchive, file: str) -> dict:
    try:
        header = json.loads(archive.read(file))
        shape, block = header["shape"], header["chunks"]
        whole = {"compressor", "order", "dtype"} <= header.keys() and len(shape) == len(block)
        whole = whole and all(isinstance(size, int) and size > 0 for size in (*shape, *block))
    except (ValueError, KeyError, TypeError):  # no JSON, or not what zarr writes
        whole = False
    if not whole:
        raise CheckpointError(f"{archive.path}: {file} is damaged; restore it, or save the model again")
    return header
