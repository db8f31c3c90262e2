"""Blocks of the tensors in a ``.nemo``, whichever form they are stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.errors import CheckpointError, first_line
from nemo_rpo.megatron.checkpoint.huggingface.mapping import EMBEDDING, OUTPUT
from nemo_rpo.megatron.checkpoint.nemo.archive import NemoArchive

# Of modules that hold no weights of their own: states of FP8 recipes, and constants.
_NO_WEIGHTS = ("_extra_state", "rotary_pos_emb.inv_freq")


class Piece(NamedTuple):
    """A stored part of a tensor: it stands at ``offset``, has ``shape``, and ``load`` reads it to the CPU."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


class NemoWeights(ABC):
    """The tensors by the names of :mod:`~nemo_rpo.megatron.checkpoint.nemo.mapping`; a subclass for each form.

    ``shapes`` are read from headers; :meth:`read` reads the pieces that a block lies in, and holds one at a time.
    """

    def __init__(self, archive: NemoArchive) -> None:
        self.archive = archive
        self.shapes: dict[str, tuple[int, ...]] = {}

    @abstractmethod
    def pieces(self, name: str) -> Iterator[Piece]:
        """What ``name`` is stored as; pieces may say the same thing twice, never two things."""

    @property
    def vocabulary(self) -> int:
        """Rows of the word embeddings, NeMo's padding among them."""
        if EMBEDDING not in self.shapes:
            raise CheckpointError(f"{self.archive.path} has no tensor {EMBEDDING}: it holds no whole GPT")
        return self.shapes[EMBEDDING][0]

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Compares the archive with the tensors that the architecture has, from headers, on every rank alike.

        Raises :class:`CheckpointError` for a tensor that is missing, has another shape, or no place in the model. The
        output layer of a model that ties it is the last pipeline stage's copy of the embeddings, and left alone.
        """
        for name, shape in shapes.items():
            if name not in self.shapes:
                raise CheckpointError(
                    f"{self.archive.path} has no tensor {name}, which its model_config.yaml calls for"
                )
            if self.shapes[name] != shape:
                raise CheckpointError(
                    f"{self.archive.path}: tensor {name} is {list(self.shapes[name])}, but its model_config.yaml makes "
                    f"it {list(shape)}"
                )
        for name in sorted(self.shapes.keys() - shapes.keys()):
            if not (name == OUTPUT and tied):
                raise CheckpointError(
                    f"{self.archive.path}: tensor {name} has no place in the model that its model_config.yaml describes"
                )

    def read(self, name: str, block: tuple[slice, ...]) -> Tensor:
        """The ``block`` (starts and stops given) of tensor ``name``, in its stored dtype, on the CPU.

        Raises :class:`CheckpointError` if a file of it is damaged.
        """
        low, high = [s.start for s in block], [s.stop for s in block]
        whole: Tensor | None = None
        for piece in self.pieces(name):
            ends = [start + size for start, size in zip(piece.offset, piece.shape, strict=True)]
            begin, end = list(map(max, low, piece.offset)), list(map(min, high, ends))
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            data = self._loaded(name, piece)
            if whole is None:
                whole = torch.empty([last - first for first, last in zip(low, high, strict=True)], dtype=data.dtype)
            here = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, low, strict=True))
            there = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, piece.offset, strict=True))
            whole[here] = data[there]
        if whole is None:
            raise CheckpointError(f"{self.archive.path} stores nothing of tensor {name}; save the model again")
        return whole

    def _loaded(self, name: str, piece: Piece) -> Tensor:
        try:
            data = piece.load()
        except CheckpointError:
            raise
        except Exception as exc:  # a damaged file fails in any way
            raise CheckpointError(f"{self.archive.path}: tensor {name} cannot be read ({first_line(exc)})") from exc
        if tuple(data.shape) != piece.shape or not data.is_floating_point():
            what = f"{data.dtype} {list(data.shape)}, not floating point {list(piece.shape)}"
            raise CheckpointError(f"{self.archive.path}: a part of tensor {name} is {what}; save the model again")
        return data


def holds_weights(name: str) -> bool:
    """Whether the entry of an archive holds weights, not optimizer state or a random state."""
    return not any(part in name for part in _NO_WEIGHTS)
