"""The checkpoints of a run on disk: named, whole or absent, the last one and the best k kept."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_rpo.config.schema import ExpManagerConfig
from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.digests import digests_of, sync
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron.checkpoint.distributed import check_files, load_state
from nemo_rpo.megatron.checkpoint.run_file import RUN_FILE, read_run, write_run
from nemo_rpo.megatron.checkpoint.writer import StateWriter
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.training.process.rank0 import on_first_rank

_TEMPORARY = ".writing-"
_NAME = re.compile(r"step=(\d+)")
ANNOTATOR_FILE = "annotators.jsonl"
PREVIOUS = "checkpoints.previous"


class CheckpointStore:
    """Folder ``checkpoints/`` of a run, which no other job writes to
    (:func:`nemo_rpo.training.process.run_lock.claimed`).

    A checkpoint is written under a temporary name and renamed when all its files are synced to disk. So a folder with a
    final name is complete, also after kill -9 or a power cut. Older checkpoints are deleted only after the rename.

    With ``exp_manager.async_save`` the run continues while a checkpoint is written, one at a time.
    """

    def __init__(self, folder: Path, manager: ExpManagerConfig) -> None:
        self.folder, self.settings = folder, manager.checkpoint_callback_params
        self._asynchronous, self._digests = manager.async_save, manager.checkpoint_digests
        self._writer = StateWriter(self._digests)
        self._under_way: _UnderWay | None = None

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
                f"exp_manager.checkpoint_callback_params.monitor={monitor} is not a validation metric; available: "
                f"{', '.join(names)}"
            )

    def save(self, model: MegatronGPTRPOModel, annotators: AnnotatorTable, run: dict[str, Any]) -> list[Path]:
        """Writes the checkpoint of ``run["step"]``, or starts to; returns the checkpoints that were completed.
        Collective.

        Raises:
            CheckpointError: it, or the one before it, cannot be written; those written before stay as they are.
        """
        whole = self.finish(wait=True)
        final = self.folder / f"step={run['step']:08d}"
        writing = self.folder / f"{_TEMPORARY}{final.name}"
        on_first_rank(partial(self._begin, writing))
        with self._clearing_up():
            run = {**run, **self._writer.begin(writing, model)}
            on_first_rank(partial(_save_annotators, annotators, writing))
        self._under_way = _UnderWay(writing, final, json.loads(json.dumps(run)))
        return whole + self.finish(wait=not self._asynchronous)

    def finish(self, wait: bool) -> list[Path]:
        """Publishes the checkpoint that is being written, if all ranks have written their part; ``wait`` blocks until
        they have. Then deletes what ``save_top_k`` no longer keeps. Returns its path in a list, or an empty list.
        Collective.

        Raises:
            CheckpointError: it cannot be written; those written before stay as they are.
        """
        if self._under_way is None:
            return []
        of = self._under_way
        with self._clearing_up():
            digests = self._writer.finish(wait)
            if digests is None:
                return []
            self._under_way = None
            on_first_rank(partial(self._publish, of, digests))
        return [of.final]

    def load(self, path: Path, model: MegatronGPTRPOModel) -> dict[str, Any]:
        """Restores ``model`` and returns the checkpoint's ``run.json``. Collective.

        Raises:
            CheckpointError: it cannot be read, or a file of it is not as it was written.
        """
        run = read_run(path)
        if self._digests:
            check_files(path, run)
        load_state(path, model, run)
        return run

    def _latest(self) -> Path | None:
        found = self._checkpoints()
        for path in found:
            read_run(path)
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

    def _publish(self, of: _UnderWay, digests: dict[str, str]) -> None:
        with _writing(of.final):
            others = sorted(path.name for path in of.writing.iterdir() if path.name not in digests)
            if self._digests:
                digests = {**digests, **digests_of(of.writing, others)}
            write_run(of.writing, of.run, digests)
            for path in (*(of.writing / name for name in [*others, RUN_FILE]), of.writing):
                sync(path)
            if of.final.exists():  # reached a second time, from an older checkpoint: same bits, newer files
                of.final.rename(self.folder / f"{_TEMPORARY}replaced")
            of.writing.rename(of.final)
            sync(self.folder)
            for path in self._dropped(of.final):  # renamed first: a removal cut short leaves no half checkpoint
                path.rename(self.folder / f"{_TEMPORARY}dropped-{path.name}")
            self._clear_unfinished()

    @contextlib.contextmanager
    def _clearing_up(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            self._under_way = None
            if dist.get_rank() == 0:  # the disk may be full
                self._clear_unfinished()
            raise

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
        mode = self.settings.mode or ("min" if self.settings.monitor.endswith("loss") else "max")
        return (value if mode == "min" else -value), step


@dataclass(frozen=True)
class _UnderWay:
    """A checkpoint that is being written: its temporary and final folder, and its ``run.json``."""

    writing: Path
    final: Path
    run: dict[str, Any]


def _save_annotators(annotators: AnnotatorTable, folder: Path) -> None:
    with _writing(folder):
        annotators.save(folder / ANNOTATOR_FILE)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise CheckpointError(
            f"the checkpoint {path} cannot be written ({exc.strerror or exc}): "
            "see that its disk has room and start again"
        ) from exc
