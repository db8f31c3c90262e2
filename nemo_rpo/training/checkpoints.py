"""The checkpoints of a run on disk: named, whole or absent, the last one and the best k kept."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_rpo.config.schema import CheckpointCallbackConfig
from nemo_rpo.data.annotators import AnnotatorTable
from nemo_rpo.megatron.checkpoint import RUN_FILE, load_state, read_run, save_state
from nemo_rpo.megatron.model import MegatronGPTRPOModel

_TEMPORARY = ".writing-"
_NAME = re.compile(r"step=(\d+)")
ANNOTATOR_FILE = "annotators.jsonl"


class CheckpointStore:
    """Folder ``checkpoints/`` of a run.

    A checkpoint is written under a temporary name and renamed when every rank has finished, so that whatever carries a
    final name is whole, also after kill -9 in the middle of a write.
    """

    def __init__(self, folder: Path, settings: CheckpointCallbackConfig) -> None:
        self.folder, self.settings = folder, settings

    def latest(self) -> Path | None:
        """The checkpoint with the most steps, or None. Local; the same on every rank of a shared file system."""
        found = [path for path in self.folder.glob("step=*") if _NAME.match(path.name) and (path / RUN_FILE).exists()]
        return max(found, key=lambda path: int(_NAME.match(path.name)[1]), default=None)

    def save(self, model: MegatronGPTRPOModel, annotators: AnnotatorTable, run: dict[str, Any]) -> Path:
        """Writes the checkpoint of ``run["step"]``, then drops what ``save_top_k`` no longer keeps. Collective."""
        final = self.folder / f"step={run['step']:08d}"
        writing = self.folder / f"{_TEMPORARY}{final.name}"
        first = dist.get_rank() == 0
        if first:
            self._clear_unfinished()
            writing.mkdir(parents=True)
        dist.barrier()
        save_state(writing, model, run)
        dist.barrier()
        if first:
            annotators.save(writing / ANNOTATOR_FILE)
            if final.exists():  # the step was reached a second time, from an older checkpoint: same bits, newer files
                final.rename(self.folder / f"{_TEMPORARY}replaced")
            writing.rename(final)
            self._clear_unfinished()
            self._prune(final)
        dist.barrier()
        return final

    def load(self, path: Path, model: MegatronGPTRPOModel) -> dict[str, Any]:
        """Restores ``model`` and returns the checkpoint's ``run.json``. Collective."""
        load_state(path, model)
        return read_run(path)

    def _clear_unfinished(self) -> None:
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path)

    def _prune(self, newest: Path) -> None:
        kept = {newest} if self.settings.save_last else set()
        paths = [path for path in self.folder.glob("step=*") if _NAME.match(path.name)]
        ranked = sorted(paths, key=lambda path: (self._badness(path), path.name))
        kept |= set(ranked[: self.settings.save_top_k])
        for path in set(paths) - kept:
            shutil.rmtree(path)

    def _badness(self, path: Path) -> float:
        value = read_run(path)["metrics"].get(self.settings.monitor)
        if value is None or not math.isfinite(value):
            return math.inf  # never validated: only the last one is worth keeping
        return value if self.settings.mode == "min" else -value
