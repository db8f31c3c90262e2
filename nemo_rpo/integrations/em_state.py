"""The EM's state in another trainer's checkpoint: files beside its weights, the first of them for people too.

Trainers keep what they know of and drop the rest (NeMo-RL loses unknown fields of its save state), while a file in the
checkpoint's folder is renamed, copied and deleted with it. ``rpo_state.json`` has η, its evidence and the table of
annotators; with ``estimator: buffer`` ``rpo_margins.npy`` has the margins, float32 [N], of the N pairs of the data, and
``rpo_label_model.npz`` what a label model needs to go on, where there is one.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.digests import digest_of
from nemo_rpo.em import AnnotatorReliability, BufferedReliability
from nemo_rpo.errors import CheckpointError, DataError

STATE_FILE = "rpo_state.json"
MARGINS_FILE = "rpo_margins.npy"
LABEL_MODEL_FILE = "rpo_label_model.npz"
_LABEL_MODEL = "label_model."  # what its tensors begin with in the state
_OF_BUFFER = ("voice", "population")  # short tensors, kept as lists
_PER_ANNOTATOR = {"eta": "eta", "label_counts": "label_count", "right_sums": "right_sum"}  # name in the state, in a row


def packed(em: AnnotatorReliability, table: AnnotatorTable, data: str | None = None) -> dict[str, Any]:
    """η, its evidence and the table as plain values, a row an annotator; Python's floats hold every float64 exactly.
    Under ``buffer`` also ``data`` and ``margins``, float32 [N] on the CPU, and ``label_model``, its tensors by name.

    Collective under ``buffer``: a gather of 4 bytes a pair over the ranks that hold different pairs.

    Args:
        data: a fingerprint of the pairs in their order, by which the margins are known; ``buffer`` needs it.
    """
    state = em.state_dict()
    annotators = [
        {**asdict(annotator), **dict(zip(_PER_ANNOTATOR.values(), values, strict=True))}
        for annotator, *values in zip(table.annotators, *(state[key].tolist() for key in _PER_ANNOTATOR), strict=True)
    ]
    saved = {"format": 1, "step": state["step"], "annotators": annotators}
    if isinstance(em, BufferedReliability):
        saved |= {"data": data, "margins": state["margins"].cpu()}
        saved |= {name: state[name].tolist() for name in _OF_BUFFER if name in state}
        if own := {name: of.cpu() for name, of in state.items() if name.startswith(_LABEL_MODEL)}:
            saved["label_model"] = own
    return saved


def unpacked(saved: dict[str, Any]) -> tuple[AnnotatorTable, dict[str, Any]]:
    """The table, and the state for :func:`restore`, of what :func:`packed` returned."""
    rows = saved["annotators"]
    table = AnnotatorTable(Annotator(row["id"], row["labels"], row["first_seen"]) for row in rows)
    state = {
        name: torch.tensor([row[column] for row in rows], dtype=torch.float64)
        for name, column in _PER_ANNOTATOR.items()
    }
    of_pairs = {name: saved[name] for name in ("data", "margins") if name in saved}
    of_pairs |= {name: torch.tensor(saved[name], dtype=torch.float64) for name in _OF_BUFFER if name in saved}
    return table, {**state, "step": saved["step"], **of_pairs, **saved.get("label_model", {})}


def save_state(folder: Path, saved: dict[str, Any]) -> None:
    """Writes what :func:`packed` returned into the checkpoint's ``folder``; for one process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = dict(saved)
    margins = saved.pop("margins", None)
    if margins is not None:
        np.save(folder / MARGINS_FILE, margins.numpy())
        saved["margins_digest"] = digest_of(folder / MARGINS_FILE)
    label_model = saved.pop("label_model", None)
    if label_model is not None:
        np.savez(folder / LABEL_MODEL_FILE, **{name: of.numpy() for name, of in label_model.items()})
        saved["label_model_digest"] = digest_of(folder / LABEL_MODEL_FILE)
    text = json.dumps(saved, indent=1, ensure_ascii=False)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_state(folder: Path) -> tuple[AnnotatorTable, dict[str, Any]]:
    """The table of a checkpoint's folder, and the state for :func:`restore`.

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
        saved = json.loads(path.read_text(encoding="utf-8"))
        if "data" in saved:
            path = folder / MARGINS_FILE
            saved["margins"] = torch.from_numpy(_load(path, saved["margins_digest"]))
        if "label_model_digest" in saved:
            path = folder / LABEL_MODEL_FILE
            arrays = _load(path, saved["label_model_digest"])
            saved["label_model"] = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return unpacked(saved)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{path} is damaged ({exc!r}): resume from an earlier checkpoint") from exc


def _load(path: Path, digest: str) -> Any:
    if digest_of(path) != digest:
        raise ValueError("its digest is not the one it was saved with")
    return np.load(path, allow_pickle=False)


def continued(saved: AnnotatorTable, data: AnnotatorTable, allow_new: bool, block: str) -> AnnotatorTable:
    """The checkpoint's table, continued with the annotators of the data that it lacks.

    Raises:
        DataError: there is one, and ``allow_new_annotators`` of the configuration's ``block`` is off.
    """
    try:
        return saved.extended(data, allow_new=allow_new)
    except DataError as exc:
        raise DataError(str(exc).replace("model.data.", f"{block}.")) from exc


def restore(em: AnnotatorReliability, state: dict[str, Any], data: str | None, block: str) -> None:
    """Puts a fresh ``em`` where a saved ``state`` stood; annotators beyond those of the state keep their start.

    Args:
        em: of the table that :func:`continued` returned.
        data: as for :func:`packed`, of the present data.
        block: the configuration's block, for messages.

    Raises:
        CheckpointError: ``buffer`` meets margins of other data, or none.
    """
    if isinstance(em, BufferedReliability):
        if "margins" not in state:
            raise CheckpointError(
                f"the checkpoint has no margins of pairs, it was trained with estimator: ema: set {block}.estimator=ema"
            )
        if state["data"] != data:
            raise CheckpointError(
                "the checkpoint's margins are of other pairs or labels: resume with the training data it began with, "
                f"in the same order, or go on without margins ({block}.estimator=ema)"
            )
    of_annotators = {name: _followed_by(state[name], getattr(em, name)) for name in _PER_ANNOTATOR}
    em.load_state_dict({**state, **of_annotators})


def _followed_by(saved: Tensor, fresh: Tensor) -> Tensor:
    return torch.cat((saved, fresh[len(saved) :].to(saved)))
