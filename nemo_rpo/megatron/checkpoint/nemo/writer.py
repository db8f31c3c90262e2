"""Writes a ``.nemo`` tensor by tensor: weights as ``torch_dist``, ``model_config.yaml``, and what goes with it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.nemo.archive import CONFIG_FILE, NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.mapping import LAYERS, key_of
from nemo_rpo.megatron.checkpoint.nemo.torch_dist import FOLDER, PREFIX
from nemo_rpo.megatron.compat.torch_internals import storage_info

_DATA = "__0_0.distcp"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
_FORMAT |= {"common_backend_version": 1}
# Megatron asks these modules for a state beside their weights (FP8's; else none), and misses it where it is not stored.
_STATEFUL = ("linear_qkv", "linear_proj", "core_attention", "q_layernorm", "k_layernorm", "linear_fc1", "linear_fc2")


class NemoWriter:
    """Appends tensors to one file as they come; the ``.nemo`` gets its name only when it is whole.

    What is under way stands in ``.<name>.partial`` beside it: an interrupted export leaves nothing that looks whole.
    Host memory: one tensor. Disk, until the end: twice the weights.
    """

    def __init__(self, path: str | Path, layers: int, source: str | Path | None) -> None:
        """``layers``: of the model; ``source``: the ``.nemo`` whose further files (of its tokenizer) are taken over.

        Raises :class:`CheckpointError` if ``path`` exists or its folder cannot be written.
        """
        self.path, self._layers, self._source = Path(path), layers, source
        self.partial = self.path.parent / f".{self.path.name}.partial"
        self._offset = 0
        self._index = Metadata({}, storage_data={})
        with self._or_abandon():
            if self.path.exists():
                raise CheckpointError(f"{self.path} exists; remove it or export to another file")
            shutil.rmtree(self.partial, ignore_errors=True)  # what an interrupted export left
            (self.partial / FOLDER).mkdir(parents=True)

    @contextmanager
    def _or_abandon(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise CheckpointError(f"{self.path} cannot be written: {exc}") from exc

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes the whole CPU tensor ``name``. Raises :class:`CheckpointError` if the disk does not."""
        key, layer = key_of(name)
        stored = tensor if layer is None else tensor.unsqueeze(0)
        size = stored.size() if layer is None else torch.Size((self._layers, *tensor.shape))
        offset = torch.Size((layer or 0, *[0] * (stored.dim() - 1)))
        fqn, tensors = PREFIX + key, self._index.state_dict_metadata
        described = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), size, [])
        chunks = tensors.setdefault(fqn, described).chunks
        chunks.append(ChunkStorageMetadata(offset, stored.size()))
        self._append(MetadataIndex(fqn, offset, len(chunks) - 1), stored.clone())

    def _append(self, where: MetadataIndex, value: Any) -> None:
        stream = io.BytesIO()
        torch.save(value, stream)
        self._index.storage_data[where] = storage_info(_DATA, self._offset, stream.tell())
        self._offset += stream.tell()
        with self._or_abandon(), (self.partial / FOLDER / _DATA).open("ab") as file:
            file.write(stream.getbuffer())

    def finish(self, config: Mapping[str, Any]) -> None:
        """Writes the index and ``config``, packs and renames. Raises :class:`CheckpointError` if it cannot."""
        from omegaconf import OmegaConf

        self._append_states()
        folder = self.partial / FOLDER
        with self._or_abandon():
            (folder / ".metadata").write_bytes(pickle.dumps(self._index))
            (folder / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")
            torch.save({}, folder / "common.pt")
            (self.partial / CONFIG_FILE).write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")
            self._take_over()
            packed = self.partial / self.path.name
            with tarfile.open(packed, "w:") as tar:
                for file in sorted(self.partial.iterdir()):
                    if file != packed:
                        tar.add(file, arcname=f"./{file.name}")
            packed.replace(self.path)
            shutil.rmtree(self.partial)

    def _append_states(self) -> None:
        for layer in range(self._layers):
            for part in _STATEFUL:
                block = "mlp" if part.startswith("linear_fc") else "self_attention"
                fqn = f"{PREFIX}{LAYERS}{block}.{part}._extra_state/shard_{layer}_{self._layers}"
                self._index.state_dict_metadata[fqn] = BytesStorageMetadata()
                self._append(MetadataIndex(fqn), [None])

    def _take_over(self) -> None:
        if self._source is None:
            return
        with NemoArchive(self._source) as archive:
            for name in archive.names:
                if "/" not in name and name != CONFIG_FILE and not name.endswith(".ckpt"):
                    with archive.open(name) as file, (self.partial / name).open("wb") as copy:
                        shutil.copyfileobj(file, copy)
