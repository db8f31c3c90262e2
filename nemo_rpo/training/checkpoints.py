"""The checkpoints of a run on disk: named, whole or absent, the last one and the best k kept."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_rpo.config.schema import CheckpointCallbackConfig
from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.distributed import load_state, read_run, save_state
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.training.rank0 import on_first_rank

_TEMPORARY = ".writing-"
_NAME = re.compile(r"step=(\d+)")
ANNOTATOR_FILE = "annotators.jsonl"
PREVIOUS = "checkpoints.previous"


class CheckpointStore:
    """Folder ``checkpoints/`` of a run, which no other job writes to (:func:`nemo_rpo.training.run_lock.claimed`).

    A checkpoint is written under a temporary name and renamed when every rank has finished, so that whatever carries a
    final name is whole, also after kill -9 in the middle of a write.
    """

    def __init__(self, folder: Path, settings: CheckpointCallbackConfig) -> None:
        self.folder, self.settings = folder, settings

    def latest(self) -> Path | None:
        """The checkpoint with the most steps, or None. Collective: rank 0 looks for all, since on a shared file system
        a folder may become visible on one node before another.

        Raises:
            CheckpointError: a folder with a checkpoint's name is none; something has damaged it since.
        """
        return on_first_rank(self._latest)

    def start_over(self) -> None:
        """Moves the checkpoints of an earlier run aside, as its metrics are, so that none is taken for one of this run.

        The ones moved aside before are lost. Collective.
        """
        on_first_rank(self._move_aside)

    def check_monitor(self, names: Iterable[str]) -> None:
        """Raises :class:`ConfigError` if the metric that ``save_top_k`` goes by is none of a validation's ``names``."""
        monitor, names = self.settings.monitor, sorted(names)
        if self.settings.save_top_k and monitor not in names:
            raise ConfigError(
                f"exp_manager.checkpoint_callback_params.monitor={monitor} is no figure of the validation; there are: "
                f"{', '.join(names)}"
            )

    def save(self, model: MegatronGPTRPOModel, annotators: AnnotatorTable, run: dict[str, Any]) -> Path:
        """Writes the checkpoint of ``run["step"]``, then drops what ``save_top_k`` no longer keeps. Collective.

        Raises:
            CheckpointError: it cannot be written; those written before stay as they are.
        """
        final = self.folder / f"step={run['step']:08d}"
        writing = self.folder / f"{_TEMPORARY}{final.name}"
        on_first_rank(partial(self._begin, writing))
        try:
            save_state(writing, model, run)
            on_first_rank(partial(self._publish, writing, final, annotators))
        except CheckpointError:
            if dist.get_rank() == 0:  # the disk may be full
                self._clear_unfinished()
            raise
        return final

    def load(self, path: Path, model: MegatronGPTRPOModel) -> dict[str, Any]:
        """Restores ``model`` and returns the checkpoint's ``run.json``. Collective.

        Raises:
            CheckpointError: it cannot be read.
        """
        load_state(path, model)
        return read_run(path)

    def _latest(self) -> Path | None:
        found = self._checkpoints()
        for path in found:
            try:
                read_run(path)
            except CheckpointError as exc:
                raise CheckpointError(
                    f"{exc.__cause__}: restore the files of {path}, "
                    "or move it away to go on from the checkpoint before it"
                ) from exc
        return found[-1] if found else None

    def _checkpoints(self) -> list[Path]:
        found = [path for path in self.folder.glob("step=*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))

    def _move_aside(self) -> None:
        if self._checkpoints():
            with _writing(self.folder):
                previous = self.folder.with_name(PREVIOUS)
                shutil.rmtree(previous, ignore_errors=True)
                self.folder.rename(previous)

    def _begin(self, writing: Path) -> None:
        with _writing(writing):
            self._clear_unfinished()
            writing.mkdir(parents=True)

    def _publish(self, writing: Path, final: Path, annotators: AnnotatorTable) -> None:
        with _writing(final):
            annotators.save(writing / ANNOTATOR_FILE)
            if final.exists():  # the step was reached a second time, from an older checkpoint: same bits, newer files
                final.rename(self.folder / f"{_TEMPORARY}replaced")
            writing.rename(final)
            for path in self._dropped(final):  # renamed first: a removal that is cut short leaves no half checkpoint
                path.rename(self.folder / f"{_TEMPORARY}dropped-{path.name}")
            self._clear_unfinished()

    def _clear_unfinished(self) -> None:
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _dropped(self, newest: Path) -> set[Path]:
        paths = self._checkpoints()
        kept = sorted(paths, key=self._rank)[: self.settings.save_top_k]
        return set(paths) - set(kept) - ({newest} if self.settings.save_last else set())

    def _rank(self, path: Path) -> tuple[float, int]:
        """Sorts the best first; of one measurement the earliest, unmeasured ones last and the latest of those first."""
        step, value = int(_NAME.fullmatch(path.name)[1]), read_run(path)["metrics"].get(self.settings.monitor)
        if value is None or not math.isfinite(value):
            return math.inf, -step
        return (value if self.settings.mode == "min" else -value), step


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written ({exc.strerror or exc}): "
            "see that its disk has room and start again"
        ) from exc
