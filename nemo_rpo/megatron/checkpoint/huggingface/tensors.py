"""A tensor of Megatron-Core's GPTModel as row runs of Hugging Face tensors (:mod:`mapping` has all of them)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_rpo.errors import ConfigError

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
ROUTER_BIAS = "decoder.layers.mlp.router.expert_bias"  # fp32 in every precision, as transformers keeps it
Place = tuple[str, "int | None", "int | None"]  # sharded key, layer, expert


@dataclass(frozen=True)
class RowRun:
    """Rows ``start … start + length`` of the Hugging Face tensor ``name``."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class MegatronTensor:
    """One tensor of one layer as row runs, in the order of its rows.

    ``layer`` is None outside the decoder layers, ``columns`` is None for a vector, ``expert`` is None for all but the
    weights of one expert of several.
    """

    key: str
    layer: int | None
    runs: tuple[RowRun, ...]
    columns: int | None
    expert: int | None = None

    @classmethod
    def whole(
        cls, key: str, layer: int | None, name: str, rows: int, columns: int | None, expert: int | None = None
    ) -> MegatronTensor:
        """One that is the Hugging Face tensor ``name``."""
        return cls(key, layer, (RowRun(name, 0, rows),), columns, expert)

    @property
    def place(self) -> Place:
        """What tells it from every other tensor."""
        return self.key, self.layer, self.expert

    @property
    def rows(self) -> int:
        """Rows that carry weights; a padded vocabulary has more."""
        return sum(run.length for run in self.runs)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises :class:`ConfigError` unless the model's tensor of this key has ``shape``, up to vocabulary padding."""
        columns = () if self.columns is None else (self.columns,)
        padded = self.key in (EMBEDDING, OUTPUT) and shape[0] >= self.rows
        if shape[1:] != columns or (shape[0] != self.rows and not padded):
            raise ConfigError(
                f"the model's {self.key} is {list(shape)}, its architecture needs {[self.rows, *columns]}; "
                "build the model from this architecture"
            )

    def overlaps(self, offset: int, length: int) -> Iterator[tuple[str, slice, slice]]:
        """The parts of rows ``offset … offset + length``: Hugging Face name, rows there, rows here from ``offset``."""
        begin = 0
        for run in self.runs:
            low, high = max(begin, offset), min(begin + run.length, offset + length)
            if low < high:
                theirs = slice(run.start + low - begin, run.start + high - begin)
                yield run.name, theirs, slice(low - offset, high - offset)
            begin += run.length
