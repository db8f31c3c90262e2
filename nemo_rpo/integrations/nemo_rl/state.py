"""The EM's state beside NeMo-RL's checkpoints: ``<step_N>/policy/rpo_state.json``.

The trainer's own save state would drop it (since v0.7.0 unknown fields are lost on loading), while a file in the
checkpoint's folder is renamed and deleted together with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nemo_rpo.data.annotators import Annotator, AnnotatorTable
from nemo_rpo.em import AnnotatorReliability
from nemo_rpo.errors import CheckpointError

STATE_FILE = "rpo_state.json"


def save_state(weights_path: str, em: AnnotatorReliability, table: AnnotatorTable) -> None:
    """Writes η, its evidence and the table beside the folder ``weights_path``; JSON holds every float64 exactly."""
    state = em.state_dict()
    annotators = [
        {**asdict(annotator), "eta": eta, "label_count": count, "right_sum": right}
        for annotator, eta, count, right in zip(
            table.annotators, *(state[key].tolist() for key in ("eta", "label_counts", "right_sums")), strict=True
        )
    ]
    folder = Path(weights_path).parent
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": 1, "step": state["step"], "annotators": annotators}, indent=1, ensure_ascii=False)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_state(checkpoint: str | None) -> tuple[AnnotatorTable, dict[str, Any]]:
    """The table of a checkpoint's folder, and the state for :meth:`AnnotatorReliability.load_state_dict`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(checkpoint or "") / "policy" / STATE_FILE
    if checkpoint is None or not path.exists():
        raise CheckpointError(
            f"{path} is missing: the run to be resumed was not trained with dpo.robust; resume it without, or give "
            "checkpointing.checkpoint_dir a new folder"
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        rows = saved["annotators"]
        table = AnnotatorTable(Annotator(row["id"], row["labels"], row["first_seen"]) for row in rows)
        columns = {"eta": "eta", "label_counts": "label_count", "right_sums": "right_sum"}
        state = {
            name: torch.tensor([row[column] for row in rows], dtype=torch.float64) for name, column in columns.items()
        }
        return table, {**state, "step": saved["step"]}
    except (ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{path} is damaged ({exc!r}): resume from an earlier checkpoint") from exc
