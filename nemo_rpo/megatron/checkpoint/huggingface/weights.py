"""Reads slices of the tensors in a Hugging Face folder, from one safetensors file or from indexed shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.errors import CheckpointError, missing_extra

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_COMPARED_ROWS = 4096


def _safetensors() -> ModuleType:
    try:
        import safetensors
    except ImportError as exc:
        raise missing_extra("safetensors", "hf") from exc
    return safetensors


def open_safetensors(path: Path, but: str = "") -> Any:
    """A memory-mapped file; its context closes it. Raises :class:`CheckpointError`: it does not exist (``but`` what
    says that it does), or is damaged.
    """
    safetensors = _safetensors()
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist{but}") from None
    except UnicodeEncodeError:  # half an emoji, which no name of a file holds
        raise CheckpointError(f"{str(path)!a} does not exist{but}") from None
    except (OSError, safetensors.SafetensorError) as exc:
        raise CheckpointError(f"{path} is not a readable safetensors file: {exc}") from exc


class SafetensorsFolder:
    """The tensors of ``folder`` by name. Files are memory-mapped: only the slices that are read come into memory.

    ``left_out``: what the names of tensors begin with that are to be passed over. A context manager. Raises
    :class:`CheckpointError` naming the file if the weights are missing or damaged.
    """

    def __init__(self, folder: str | Path, left_out: tuple[str, ...] = ()) -> None:
        self.folder, self._left_out = Path(folder), left_out
        self._stack = ExitStack()
        self._opened: dict[str, Any] = {}
        self._file_of = self._locate()

    def __enter__(self) -> SafetensorsFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _locate(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.exists():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
                raise CheckpointError(f"{index} is not an index of safetensors files: {exc!r}") from exc
            # A file of the folder, never one elsewhere.
            if not isinstance(weight_map, dict) or not all(_is_name(file) for file in weight_map.values()):
                raise CheckpointError(f"{index} is not an index of safetensors files: weight_map must name files")
            return weight_map
        if (self.folder / SINGLE).exists():
            return dict.fromkeys(self._file(SINGLE).keys(), SINGLE)
        pickled = sorted(path.name for path in self.folder.glob("*.bin"))
        hint = f" ({pickled[0]} holds pickled weights; save the model again as safetensors)" if pickled else ""
        raise CheckpointError(f"{self.folder} has neither {SINGLE} nor {INDEX}{hint}")

    def _file(self, name: str) -> Any:
        if name not in self._opened:
            file = open_safetensors(self.folder / name, f", but {INDEX} names it")
            self._opened[name] = self._stack.enter_context(file)
        return self._opened[name]

    def _slice(self, name: str) -> Any:
        file = self._file_of[name]
        try:
            return self._file(file).get_slice(name)
        except _safetensors().SafetensorError as exc:
            raise CheckpointError(f"{self.folder / file} has no tensor {name}, but {INDEX} names it there") from exc

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Compares the folder with the tensors that the architecture has, from the files' headers.

        Every rank checks all of them, not its own share, so that a damaged folder stops every rank with the same
        :class:`CheckpointError`: a tensor that is missing, has another shape, is not floating point, or has no place in
        the model. A stored ``lm_head`` of a model that ties it is accepted if it equals the embeddings.
        """
        for name, shape in shapes.items():
            if name not in self._file_of:
                raise CheckpointError(f"{self.folder} has no tensor {name}, which its config.json calls for")
            found = self._slice(name)
            where = f"{self.folder / self._file_of[name]}: tensor {name}"
            if tuple(found.get_shape()) != shape:
                raise CheckpointError(f"{where} is {found.get_shape()}, but config.json makes it {list(shape)}")
            if found.get_dtype() not in _FLOATS:
                raise CheckpointError(f"{where} is stored as {found.get_dtype()}; start from the unquantized weights")
        for name in sorted(self._file_of.keys() - shapes.keys()):
            if name.startswith(self._left_out):
                continue
            if name == "lm_head.weight" and tied:
                self._check_tied(name, "model.embed_tokens.weight")
            elif not name.endswith("rotary_emb.inv_freq"):  # a constant that early transformers releases saved
                file = self.folder / self._file_of[name]
                raise CheckpointError(f"{file}: tensor {name} has no place in the model that config.json describes")

    def _check_tied(self, name: str, twin: str) -> None:
        one, other = self._slice(name), self._slice(twin)
        rows = other.get_shape()[0]
        blocks = (slice(start, start + _COMPARED_ROWS) for start in range(0, rows, _COMPARED_ROWS))
        if one.get_shape() != other.get_shape() or not all(torch.equal(one[block], other[block]) for block in blocks):
            raise CheckpointError(
                f"{self.folder}: config.json ties {name} to {twin}, but the stored tensors differ; "
                "set tie_word_embeddings to false there"
            )

    def read(self, name: str, block: tuple[slice, ...]) -> Tensor:
        """The ``block`` of tensor ``name``, in its stored dtype, on the CPU."""
        return self._slice(name)[block]


def _is_name(file: Any) -> bool:
    return isinstance(file, str) and file not in ("", "..") and Path(file).name == file
