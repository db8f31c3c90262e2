"""Writes a Hugging Face folder tensor by tensor: safetensors files, their index, ``config.json``, tokenizer files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.errors import CheckpointError, missing_extra
from nemo_rpo.megatron.checkpoint.huggingface.weights import INDEX

# Beside the tokenizer's own files: what chat and generation read from the same folder.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


class HuggingFaceFolderWriter:
    """Collects tensors until an output file is complete, then writes it; the folder gets its name only when all are.

    Everything is written to ``.<name>.partial`` beside ``folder`` and renamed by :meth:`finish`, so that an interrupted
    export leaves nothing that looks whole. Host memory: one output file.
    """

    def __init__(
        self,
        folder: str | Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        max_shard_size: int | str,
        tokenizer_folder: str | Path | None = None,
        generation_config: str | Path | None = None,
    ) -> None:
        """``shapes``: of every tensor that will be added, in file order; ``max_shard_size`` as in ``save_pretrained``.
        ``generation_config``: the model's file of that name, before one of the tokenizer's folder; may be missing.

        Raises :class:`CheckpointError` if ``folder`` already holds something, cannot be made, or ``tokenizer_folder``
        holds no tokenizer.
        """
        self.folder = Path(folder)
        self.partial = self.folder.parent / f".{self.folder.name}.partial"
        self._files = _tokenizer_files(tokenizer_folder)
        if generation_config is not None and Path(generation_config).is_file():
            own = Path(generation_config)
            self._files = [*(path for path in self._files if path.name != own.name), own]
        self._index = _plan(shapes, dtype, max_shard_size)
        self._file_of: dict[str, str] = self._index["weight_map"]
        self._missing = Counter(self._file_of.values())
        self._waiting: dict[str, dict[str, Tensor]] = {file: {} for file in self._missing}
        with self._or_abandon():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise CheckpointError(f"{self.folder} exists and is not empty; remove it or export to another folder")
            shutil.rmtree(self.partial, ignore_errors=True)  # what an interrupted export left
            self.partial.mkdir(parents=True)

    @contextmanager
    def _or_abandon(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as exc:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise CheckpointError(f"{self.folder} cannot be written: {exc}") from exc

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes the whole CPU tensor ``name``; writes its file if it was the last one missing there.

        Raises :class:`CheckpointError` if the file cannot be written.
        """
        from safetensors.torch import save_file

        file = self._file_of[name]
        self._waiting[file][name] = tensor
        self._missing[file] -= 1
        if not self._missing[file]:
            with self._or_abandon():
                save_file(self._waiting.pop(file), self.partial / file, metadata={"format": "pt"})

    def add_file(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """A file of its own, in no index. :class:`CheckpointError` if it cannot be written."""
        from safetensors.torch import save_file

        with self._or_abandon():
            save_file(dict(tensors), self.partial / file, metadata={"format": "pt"})

    def finish(self, config: Mapping[str, Any]) -> None:
        """Writes index and ``config.json``, copies the tokenizer, renames. :class:`CheckpointError` if it cannot."""
        with self._or_abandon():
            if len(self._missing) > 1:
                self._write_json(INDEX, self._index)
            self._write_json("config.json", config)
            for path in self._files:
                shutil.copyfile(path, self.partial / path.name)
            self.partial.replace(self.folder)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _plan(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_size: int | str) -> dict[str, Any]:
    """The index of the files to come: ``weight_map`` says which tensor goes where."""
    try:
        from huggingface_hub import split_torch_state_dict_into_shards
    except ImportError as exc:
        raise missing_extra("huggingface_hub", "hf") from exc
    planned = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    weight_map = {name: file for file, names in split.filename_to_tensors.items() for name in names}
    return {"metadata": split.metadata, "weight_map": weight_map}


def _tokenizer_files(folder: str | Path | None) -> list[Path]:
    if folder is None:
        return []
    files = [path for name in TOKENIZER_FILES if (path := Path(folder) / name).is_file()]
    if not any(path.name.startswith(("tokenizer", "vocab")) for path in files):
        raise CheckpointError(f"{folder} holds no tokenizer files to copy into the export")
    return files
