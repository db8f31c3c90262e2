"""The EM's state in another trainer's checkpoint: one file beside its weights, for people too.

Trainers keep what they know of and drop the rest (NeMo-RL loses unknown fields of its save state), while a file in the
checkpoint's folder is renamed, copied and deleted with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.em import AnnotatorReliability
from nemo_rpo.errors import CheckpointError, DataError

STATE_FILE = "rpo_state.json"


def packed(em: AnnotatorReliability, table: AnnotatorTable) -> dict[str, Any]:
    """η, its evidence and the table as plain values, a row an annotator; Python's floats hold every float64 exactly."""
    state = em.state_dict()
    annotators = [
        {**asdict(annotator), "eta": eta, "label_count": count, "right_sum": right}
        for annotator, eta, count, right in zip(
            table.annotators, *(state[key].tolist() for key in ("eta", "label_counts", "right_sums")), strict=True
        )
    ]
    return {"format": 1, "step": state["step"], "annotators": annotators}


def unpacked(saved: dict[str, Any]) -> tuple[AnnotatorTable, dict[str, Any]]:
    """The table, and the state for :meth:`AnnotatorReliability.load_state_dict`, of what :func:`packed` returned."""
    rows = saved["annotators"]
    table = AnnotatorTable(Annotator(row["id"], row["labels"], row["first_seen"]) for row in rows)
    columns = {"eta": "eta", "label_counts": "label_count", "right_sums": "right_sum"}
    state = {name: torch.tensor([row[column] for row in rows], dtype=torch.float64) for name, column in columns.items()}
    return table, {**state, "step": saved["step"]}


def save_state(folder: Path, em: AnnotatorReliability, table: AnnotatorTable) -> None:
    """Writes :func:`packed` into the checkpoint's ``folder``; JSON holds every float64 exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(packed(em, table), indent=1, ensure_ascii=False)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_state(folder: Path) -> tuple[AnnotatorTable, dict[str, Any]]:
    """The table of a checkpoint's folder, and the state for :meth:`AnnotatorReliability.load_state_dict`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / STATE_FILE
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: the run to be resumed was trained without reliabilities; resume it without them, or "
            "start in a new folder"
        )
    try:
        return unpacked(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{path} is damaged ({exc!r}): resume from an earlier checkpoint") from exc


def continued(saved: AnnotatorTable, data: AnnotatorTable, allow_new: bool, block: str) -> AnnotatorTable:
    """The checkpoint's table, continued with the annotators of the data that it lacks.

    Raises:
        DataError: there is one, and ``allow_new_annotators`` of the configuration's ``block`` is off.
    """
    try:
        return saved.extended(data, allow_new=allow_new)
    except DataError as exc:
        raise DataError(str(exc).replace("model.data.", f"{block}.")) from exc


def with_newcomers(state: dict[str, Any], em: AnnotatorReliability) -> dict[str, Any]:
    """A saved ``state`` of fewer annotators, the rest as they are in the fresh ``em``."""
    fresh = em.state_dict()
    return {
        key: torch.cat((value, fresh[key][len(value) :].to(value))) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
