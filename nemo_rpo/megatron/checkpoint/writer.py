"""Writes the tensors of checkpoints: every rank writes its part, in a separate process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import __version__ as megatron_version
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from torch.distributed.checkpoint.api import CheckpointException

from nemo_rpo.digests import digests_of, sync
from nemo_rpo.errors import CheckpointError
from nemo_rpo.megatron.checkpoint.optimizer_parts import optimizer_state, steps_taken
from nemo_rpo.megatron.checkpoint.run_tensors import em_state, layout, random_state
from nemo_rpo.megatron.checkpoint.weights import model_state
from nemo_rpo.megatron.compat.checkpoint_strategy import async_save, save_strategy
from nemo_rpo.megatron.model import MegatronGPTRPOModel
from nemo_rpo.process_tree import die_with_parent


class StateWriter:
    """Writes the checkpoints of a run one after the other.

    On each rank, :meth:`begin` forks a writer process, which has a snapshot of the tensors. It writes the rank's part,
    syncs it to disk and computes its digests, while the run trains on or waits in :meth:`finish`. Data-parallel ranks
    divide replicated tensors among them. The division is decided, and checked for completeness, at the first save.

    Args:
        digests: compute the SHA-256 of every data file.
    """

    def __init__(self, digests: bool) -> None:
        self._digests = digests
        self._strategy = save_strategy(parallel_state.get_data_parallel_group(with_context_parallel=True))
        self._queue = AsyncCallsQueue()
        self._folder: Path | None = None

    def begin(self, folder: Path, model: MegatronGPTRPOModel) -> dict[str, Any]:
        """Starts to write ``model`` into the existing, empty ``folder``; returns its entries for ``run.json``. The
        weights may change as soon as this returns.

        On a GPU, the bytes that this rank writes are first copied to the host.

        Collectives: :meth:`MegatronGPTRPOModel.gather_weights`; a gather of tensor descriptions over the world.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._folder is not None:
            raise RuntimeError("a checkpoint is being written: finish it first")
        model.gather_weights()
        weights = model_state(model.model)
        state = {
            "optimizer": optimizer_state(model.optimizer, weights),
            "em": em_state(model.em),
            "random": random_state(),
            **weights,
        }
        with _writing(folder):
            sharded, _ = save_preprocess(state, validate_access_integrity=False)
            request = async_save(self._strategy, sharded, folder)
            self._queue.schedule_async_request(self._digesting(request, folder))
        self._folder = folder
        return {
            "architecture": model.architecture.to_dict(),
            "layout": layout(),
            "reward_outputs": dict(model.needs.reward_outputs),
            **({"players": list(model.needs.players)} if model.needs.players else {}),
            "optimizer_steps": steps_taken(model.optimizer),
            "scheduler": model.scheduler.state_dict(),
            "megatron_core": megatron_version,
        }

    def _digesting(self, request: AsyncRequest, folder: Path) -> AsyncRequest:
        if request.async_fn is None:  # this rank has nothing to write
            return request
        write = partial(_write_part, request.async_fn, folder, dist.get_rank(), self._digests, os.getpid())
        return request._replace(async_fn=write)

    def finish(self, wait: bool) -> dict[str, str] | None:
        """Digests of all data files by name, on every rank; None if the files are not written yet. With ``wait``,
        blocks until they are. Call :meth:`begin` first.

        Collectives: an all-reduce of 4 bytes over the world; in the end a gather of file offsets and digests.

        Raises:
            CheckpointError: it cannot be written, on every rank.
        """
        folder = self._folder
        with _writing(folder):
            self._folder = None  # unless it is still under way
            if not self._queue.maybe_finalize_async_calls(blocking=wait):
                self._folder = folder
                return None
            return self._gathered_digests(folder)

    def _gathered_digests(self, folder: Path) -> dict[str, str]:
        found: list[Any] = [None] * dist.get_world_size()
        try:
            own: dict[str, str] | OSError = self._own_digests(folder)
            if dist.get_rank() == 0:
                save_config(CheckpointingConfig(self._strategy.backend, self._strategy.version), str(folder))
        except OSError as exc:
            own = exc
        dist.all_gather_object(found, own)
        for theirs in found:
            if isinstance(theirs, OSError):
                raise theirs
        return {name: digest for theirs in found for name, digest in theirs.items()}

    def _own_digests(self, folder: Path) -> dict[str, str]:
        """Of the files of this rank, where there are any; the writer leaves them when all is on the disk, none of them
        without ``digests``.
        """
        path = _digest_file(folder, dist.get_rank())
        if not _data_files(folder, dist.get_rank()):
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return found


def _data_files(folder: Path, rank: int) -> list[str]:
    return sorted(path.name for path in folder.glob(f"__{rank}_*.distcp"))


def _digest_file(folder: Path, rank: int) -> Path:
    return folder / f".digests-{rank}.json"


def _write_part(write: Callable[..., None], folder: Path, rank: int, digests: bool, parent: int, *args: Any) -> None:
    """Runs in the writer process of a rank; ``args`` hold the tensors."""
    die_with_parent(parent)
    write(*args)
    names = _data_files(folder, rank)
    with contextlib.suppress(OSError):  # finish() fails on the missing file
        for name in names:
            sync(folder / name)
        made = json.dumps(digests_of(folder, names) if digests else {})
        writing = folder / f".writing-digests-{rank}"
        writing.write_text(made, encoding="utf-8")
        writing.rename(_digest_file(folder, rank))


@contextlib.contextmanager
def _writing(folder: Path | None) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException) as exc:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be written ({cause(exc)}): see that its disk has room and start again"
        ) from exc


def cause(exc: BaseException) -> str:
    """The reason of a failure in one line; the first one of those that torch gathered from the ranks."""
    if isinstance(exc, CheckpointException):
        failures = [failure for failure, _ in exc.failures.values()]
        return cause(failures[0]) if failures else "on another rank"
    sentence = " ".join(str(exc).split()).split(". ")[0]
    return f"{type(exc).__name__}: {sentence}" if sentence else type(exc).__name__
