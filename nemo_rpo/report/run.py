"""What a run left in its folder, read back; the files and columns are those of :mod:`nemo_rpo.training.outputs.record`.

Shapes: v labels, n pairs with a label, K annotators.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.config.load import load_config
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.data.cache.arrow import pyarrow
from nemo_rpo.errors import DataError, RPOError, first_line
from nemo_rpo.training.logs.metrics import METRICS_FILE, read_metrics
from nemo_rpo.training.outputs.record import ANNOTATORS, POSTERIORS, STEP, VALIDATION
from nemo_rpo.training.outputs.results import LABEL_MODEL_JSON
from nemo_rpo.training.process.run_lock import holder_of


@dataclass(frozen=True)
class Labels:
    """Signed labels, in the order of the data.

    Attributes:
        pair: int64 [v], index of the pair, counted in the order of the file. A pair id that stands for several pairs
            (labels that were not grouped) has as many indices.
        pair_id: [v].
        annotator: int64 [v], index into the run's annotators; K for one that the run does not know.
        sign: int8 [v], +1 for the pair's chosen response, -1 for its rejected one.
        source: [v], ``file:row`` that shows the pair first.
        tokens: int32 [v, 2], of chosen and rejected.
        delta_first, delta_last: float64 [v], Δ of the pair; NaN where it was not seen.
        w_first, w_last: float64 [v], probability that the label is right.
        w_of_group: float64 [v, G], of a run with G groups of taste, the probability that the pair's chosen response is
            better for each; G is 0 where there is one truth for all.
    """

    pair: np.ndarray
    pair_id: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    source: np.ndarray
    tokens: np.ndarray
    delta_first: np.ndarray
    delta_last: np.ndarray
    w_first: np.ndarray
    w_last: np.ndarray
    w_of_group: np.ndarray

    def __len__(self) -> int:
        return len(self.sign)

    @property
    def distrusted(self) -> np.ndarray:
        """bool [v], labels that the EM believes to be wrong; False where nothing is known."""
        return self.w_last < 0.5


@dataclass(frozen=True)
class Annotators:
    """Annotators in the data's order: [K] each; ``standard_error`` NaN where nothing was fitted.

    ``way`` float32 [K, T] is η at the optimizer ``steps`` [T]; ``weight`` float64 [K, G] the weights on G groups of
    taste, 0 of them where there is one truth for all.
    """

    id: list[str]
    labels: np.ndarray
    eta: np.ndarray
    standard_error: np.ndarray
    eta_start: np.ndarray
    steps: np.ndarray
    way: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def ranked(self) -> np.ndarray:
        """int64 [K], the least reliable first."""
        return np.lexsort((np.array(self.id), self.eta))


@dataclass(frozen=True)
class HeldOut:
    """Signed labels of held-out pairs: as in :class:`Labels`; ``gold`` int8 [v] is +1, -1, or 0 where unknown, ``set``
    [v] the name of the validation set, ``""`` where it has none; ``prompt`` [v] is equal for pairs of one prompt.
    """

    pair_id: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    gold: np.ndarray
    delta: np.ndarray
    set: np.ndarray
    prompt: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """int8 [v], which response a policy ought to prefer: the gold label where there is one, else the label."""
        return np.where(self.gold != 0, self.gold, self.sign)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where it lies.
        cfg: its configuration.
        metrics: the rows of ``metrics.jsonl``.
        step: optimizer steps behind the record; of a run without the EM, those in ``metrics``.
        labels, annotators: ``None`` for a run without the EM.
        held_out: ``None`` without validation data, or before the end of the run.
        label_model: what ``label_model.json`` holds; empty without one.
    """

    folder: Path
    cfg: RunConfig
    metrics: list[dict[str, Any]]
    step: int
    labels: Labels | None
    annotators: Annotators | None
    held_out: HeldOut | None
    label_model: dict[str, Any] = field(default_factory=dict)

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl`` of one split."""
        return [row for row in self.metrics if row["split"] == split]


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        DataError: no run, one that a job is at work on, one without a record, or a file that is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder} is not the folder of a run (it has no config.yaml): name one that exp_manager wrote")
    holder = holder_of(folder)
    if holder:
        raise DataError(f"{folder} is still being written ({holder}); wait for the end of the run, or stop it")
    cfg = load_config(str(folder / "config.yaml"), notify=lambda text: None)
    if not (folder / METRICS_FILE).is_file():
        raise DataError(f"{folder} has no {METRICS_FILE}: the run has not taken a step")
    metrics = read_metrics(folder)
    if not metrics:
        raise DataError(f"{folder / METRICS_FILE} is empty: the run has not taken a step")
    labels = annotators = None
    step = max(row["step"] for row in metrics)
    if cfg.model.rpo.enabled:
        with _whole(folder / ANNOTATORS):
            annotators, step = _annotators(folder / ANNOTATORS)
        with _whole(folder / POSTERIORS):
            labels = _labels(folder / POSTERIORS, annotators)
    held_out = None
    if (folder / VALIDATION).exists():
        with _whole(folder / VALIDATION):
            held_out = _held_out(folder / VALIDATION, annotators)
    label_model = {}
    if cfg.model.rpo.enabled and (folder / LABEL_MODEL_JSON).exists():
        with _whole(folder / LABEL_MODEL_JSON):
            label_model = dict(json.loads((folder / LABEL_MODEL_JSON).read_text(encoding="utf-8")))
    return Run(folder, cfg, metrics, step, labels, annotators, held_out, label_model)


def _table(path: Path) -> Any:
    pa, pq = pyarrow()
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: the run has not saved a checkpoint yet, or was trained with "
            "model.rpo.record=false or before there was a record; train again to get one"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; start the run again, and it is written anew")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as exc:
        reason = first_line(exc).rstrip(".")
        raise DataError(f"{path}: no Parquet file, or a truncated one ({reason})") from exc
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows")
    return table


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What a damaged table leads to, as an answer: its bytes decide which of its values cannot be made sense of."""
    pa, _ = pyarrow()
    try:
        yield
    except (pa.ArrowException, ValueError, TypeError, LookupError, OverflowError, RecursionError) as exc:
        if isinstance(exc, RPOError):
            raise
        raise DataError(f"{path} is damaged ({first_line(exc)}); copy the run again, or train again") from exc


def _column(table: Any, path: Path, name: str) -> Any:
    if name not in table.column_names:
        raise DataError(f"{path} has no column {name}: another version of this package wrote it; train again")
    return table[name]


def _floats(table: Any, path: Path, name: str) -> np.ndarray:
    return _column(table, path, name).to_numpy().astype(np.float64)


def _numbered(table: Any, prefix: str) -> np.ndarray:
    """Columns ``prefix``1, ``prefix``2, … side by side, float64 [rows, G]; G is 0 without any."""
    found = [table[name].to_numpy() for name in table.column_names if name.startswith(prefix)]
    return np.stack(found, 1).astype(np.float64) if found else np.empty((table.num_rows, 0))


def _annotators(path: Path) -> tuple[Annotators, int]:
    table = _table(path)
    ways = _column(table, path, "trajectory_eta").to_pylist()
    steps = _column(table, path, "trajectory_steps")[0].as_py()
    read = Annotators(
        id=_column(table, path, "id").to_pylist(),
        labels=_column(table, path, "labels").to_numpy(),
        eta=_floats(table, path, "eta"),
        standard_error=_floats(table, path, "standard_error"),
        eta_start=_floats(table, path, "eta_start"),
        steps=np.array(steps, np.int64),
        way=np.array(ways, np.float32).reshape(len(ways), len(steps)),
        weight=_numbered(table, "weight_"),
    )
    return read, int(json.loads((table.schema.metadata or {}).get(STEP.encode(), b"0")))


def _named(table: Any, path: Path, annotators: Annotators | None) -> np.ndarray:
    """Index of the annotator of each label; K where there is no name among them."""
    names = _column(table, path, "annotator").to_pylist()
    known = {name: k for k, name in enumerate(annotators.id)} if annotators else {}
    # Labels without a name share one annotator, which the record leaves unnamed.
    unnamed = known.get(VIRTUAL, len(known))
    return np.array([unnamed if name is None else known.get(name, len(known)) for name in names], np.int64)


def _labels(path: Path, annotators: Annotators) -> Labels:
    table = _table(path)
    text = {name: _column(table, path, name).to_numpy() for name in ("pair_id", "source")}
    return Labels(
        pair=_column(table, path, "pair").to_numpy(),
        annotator=_named(table, path, annotators),
        sign=_column(table, path, "sign").to_numpy().astype(np.int8),
        tokens=np.stack([_column(table, path, name).to_numpy() for name in ("chosen_tokens", "rejected_tokens")], 1),
        w_of_group=_numbered(table, "w_of_group_"),
        **{name: _floats(table, path, name) for name in ("delta_first", "delta_last", "w_first", "w_last")},
        **text,
    )


def _held_out(path: Path, annotators: Annotators | None) -> HeldOut:
    table = _table(path)
    return HeldOut(
        pair_id=_column(table, path, "pair_id").to_numpy(),
        annotator=_named(table, path, annotators),
        sign=_column(table, path, "sign").to_numpy().astype(np.int8),
        gold=_column(table, path, "gold").to_numpy(),
        delta=_floats(table, path, "delta"),
        set=table["set"].to_numpy() if "set" in table.column_names else np.full(table.num_rows, ""),
        # Of a run from before there was such a column each pair stands for a prompt of its own.
        prompt=_column(table, path, "prompt" if "prompt" in table.column_names else "pair_id").to_numpy(),
    )
