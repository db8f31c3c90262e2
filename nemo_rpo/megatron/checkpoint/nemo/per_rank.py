"""Weights as one state dict a model-parallel rank: ``model_weights.ckpt``, or one in each ``mp_rank_XX`` (tensor
parallel) or ``tp_rank_XX_pp_rank_XXX`` folder.

A rank names its layers from 0; the pieces of a tensor lie side by side along the axis that Megatron splits. A file is
read with ``weights_only=True``, whole, and kept: memory is what the files hold of the tensors asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.errors import CheckpointError, first_line
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive
from nemo_rpo.megatron.checkpoint.nemo.mapping import LAYERS, key_of, name_of
from nemo_rpo.megatron.checkpoint.nemo.weights import NemoWeights, Piece, holds_weights

FILE = "model_weights.ckpt"
_RANK = re.compile(r"(?:(?:mp_rank|tp_rank)_(?P<tensor>\d+)(?:_pp_rank_(?P<pipeline>\d+))?/)?model_weights\.ckpt")
# Of the layer spec without Transformer Engine, whose norms stand before the layers that they belong to.
_LOCAL_SPEC = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
_BY_ROWS = ("linear_qkv.weight", "linear_qkv.bias", "word_embeddings.weight", "output_layer.weight")
_FC1 = ("linear_fc1.weight", "linear_fc1.bias")


class PerRankWeights(NemoWeights):
    """The tensors in the state dicts of ``archive``.

    Args:
        gated: whether a rank's ``linear_fc1`` is its gate rows over its up rows.

    Raises:
        CheckpointError: a file is missing, damaged, or would need code to be read.
    """

    def __init__(self, archive: NemoArchive, gated: bool) -> None:
        super().__init__(archive)
        self._gated = gated
        self._loaded_files: dict[str, dict[str, Tensor]] = {}
        self._parts: dict[str, list[tuple[tuple[int, ...], str, str, slice | None]]] = {}
        found = {name: match for name in archive.names if (match := _RANK.fullmatch(name))}
        ranks = {(int(m["pipeline"] or 0), int(m["tensor"] or 0)): name for name, m in found.items()}
        self._tensor = 1 + max(tensor for _, tensor in ranks)
        stages = 1 + max(pipeline for pipeline, _ in ranks)
        before = 0
        for stage in range(stages):
            headers = []
            for tensor in range(self._tensor):
                if (stage, tensor) not in ranks:
                    raise CheckpointError(
                        f"{archive.path} has no {FILE} of tensor rank {tensor}, pipeline rank {stage}"
                    )
                headers.append((ranks[stage, tensor], self._state(ranks[stage, tensor], "meta")))
            before += self._add_stage(headers, before)

    def _state(self, file: str, device: str) -> dict[str, Tensor]:
        try:
            with self.archive.open(file) as stream:
                state = torch.load(stream, map_location=device, weights_only=True)
        except Exception as exc:  # torch raises what the damaged file leads it to
            raise CheckpointError(
                f"{self.archive.path}: {file} cannot be read as plain tensors ({first_line(exc)})"
            ) from exc
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.archive.path}: {file} holds no state dict")
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor) and holds_weights(name)}

    def _add_stage(self, headers: list[tuple[str, dict[str, Tensor]]], before: int) -> int:
        """Takes in the tensors of one pipeline stage; the number of its layers."""
        layers = 0
        for stored in headers[0][1]:
            key, layer = key_of(stored.removeprefix("model.").removeprefix("module."))
            for theirs, ours in _LOCAL_SPEC.items():
                key = key.replace(LAYERS + theirs, LAYERS + ours)
            layers = max(layers, 0 if layer is None else layer + 1)
            name = name_of(key, None if layer is None else before + layer)
            try:
                self._add(name, [(file, stored, tuple(header[stored].shape)) for file, header in headers])
            except KeyError:
                raise CheckpointError(f"{self.archive.path}: {stored} is not in every tensor rank's {FILE}") from None
        return layers

    def _add(self, name: str, copies: list[tuple[str, str, tuple[int, ...]]]) -> None:
        file, stored, shape = copies[0]
        axis = 1 if name.endswith(_BY_COLUMNS) else 0 if name.endswith((*_BY_ROWS, *_FC1)) else None
        if axis is None or self._tensor == 1:
            self.shapes[name], self._parts[name] = shape, [((0,) * len(shape), file, stored, None)]
            return
        whole = list(shape)
        whole[axis] *= self._tensor
        self.shapes[name], self._parts[name] = tuple(whole), []
        halves = 2 if self._gated and name.endswith(_FC1) else 1
        size = shape[axis] // halves
        for rank, (file, stored, _) in enumerate(copies):
            for half in range(halves):
                start = half * whole[axis] // halves + rank * size
                offset = tuple(start if at == axis else 0 for at in range(len(shape)))
                rows = slice(half * size, (half + 1) * size) if halves == 2 else None
                self._parts[name].append((offset, file, stored, rows))

    def pieces(self, name: str) -> Iterator[Piece]:
        whole = self.shapes[name]
        for offset, file, stored, rows in self._parts[name]:
            split = len(self._parts[name])
            axis = 1 if name.endswith(_BY_COLUMNS) else 0
            shape = tuple(size // split if at == axis else size for at, size in enumerate(whole))
            yield Piece(offset, shape, partial(self._tensor_of, file, stored, rows))

    def _tensor_of(self, file: str, stored: str, rows: slice | None) -> Any:
        if file not in self._loaded_files:
            self._loaded_files[file] = self._state(file, "cpu")
        data = self._loaded_files[file][stored]
        return data if rows is None else data[rows]
