"""Builds a :class:`PreferenceCache` once, however many ranks and jobs ask for it at the same time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from nemo_rpo.data.cache.spec import CacheSpec, cache_key
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.cache.writer import Progress, write_cache
from nemo_rpo.digests import sync
from nemo_rpo.errors import DataError, RPOError

log = logging.getLogger(__name__)

CACHE_FOLDER = ".nemo_rpo_cache"


def open_cache(
    spec: CacheSpec,
    cache_dir: Path | None,
    *,
    num_workers: int,
    wait_timeout: float = 6 * 3600,
    progress: Progress | None = None,
    key: str | None = None,
    check: bool = True,
) -> PreferenceCache:
    """The cache of ``spec``, built first if there is none.

    Every rank calls this, and none is special: whoever gets the file lock builds, the others wait for it. The lock is
    the kernel's, so it is free again the moment its holder dies, and the next in line builds; nobody hangs. If a build
    fails, those who waited raise the same error, and those who come later meet it on their own. The work is done in a
    folder of its own and renamed when it is complete, so a cache is there or it is not, also on file systems without
    locks (there, ranks may build side by side; the first to finish wins).

    Args:
        cache_dir: ``None`` for ``.nemo_rpo_cache`` beside the first data file.
        num_workers: processes to tokenise in.
        wait_timeout: seconds to wait for another process's build.
        progress: called with rows done and rows in all.
        key: that of ``spec``, where another rank has read the data files for it; ``None`` reads them here.
        check: compare every file with its digest (ranks that open it together share that out among them).

    Raises:
        DataError: bad data or tokenizer, a cache that is damaged or cannot be written, or the time-out.
    """
    folder = cache_folder(spec, cache_dir, key)
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _build_once(spec, folder, num_workers, wait_timeout, progress)
        except OSError as exc:
            raise DataError(
                f"cannot write the token cache in {folder.parent} ({exc.strerror or exc}); set model.data.cache_dir"
            ) from exc
    cache = PreferenceCache(folder)
    if check:
        cache.check()
    files = ", ".join(str(path) for path in spec.paths)
    log.info("%s: %s", files, cache.summary())
    for note in cache.notes() if os.environ.get("RANK", "0") == "0" else ():  # every rank opens it, and one says so
        log.warning("%s: %s", files, note)
    return cache


def cache_folder(spec: CacheSpec, cache_dir: Path | None, key: str | None = None) -> Path:
    """Where the cache of ``spec`` lies or will lie."""
    parent = spec.paths[0].parent / CACHE_FOLDER if cache_dir is None else Path(cache_dir)
    return parent / f"{spec.paths[0].name.split('.')[0]}-{(key or cache_key(spec.ingredients()))[:20]}"


def _build_once(
    spec: CacheSpec, folder: Path, num_workers: int, wait_timeout: float, progress: Progress | None
) -> None:
    failure = _Failure(folder.with_name(f"{folder.name}.failed.json"))
    seen = failure.read()
    with _lock(folder, wait_timeout) as alone:
        if folder.is_dir():
            return
        latest = failure.read()
        if latest is not None and latest != seen:  # it came up while this process waited: the same data, the same end
            raise DataError(latest["message"])
        if alone:
            for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a build that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        workplace = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        workplace.mkdir()
        try:
            write_cache(spec, workplace, num_workers, progress)
            _publish(workplace, folder)
            failure.clear()
        except RPOError as exc:
            failure.write(str(exc))
            raise
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


def _publish(workplace: Path, folder: Path) -> None:
    try:
        os.rename(workplace, folder)
        sync(folder.parent)
    except OSError:
        if not folder.is_dir():  # else another build of the same key was first, and it is as good
            raise


@contextlib.contextmanager
def _lock(folder: Path, timeout: float) -> Iterator[bool]:
    """Holds the lock of one cache; yields False where the file system has none, so that nobody else is kept out."""
    from filelock import FileLock, Timeout

    path = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire(poll_interval=0.2)
    except Timeout:
        raise DataError(
            f"waited {timeout:.0f} s for another process to finish the token cache {folder}; if none is at work, "
            f"delete {path}"
        ) from None
    except NotImplementedError:
        log.warning("%s has no file locks: ranks that start together may build the same cache each", folder.parent)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class _Failure:
    """The last failed attempt at one cache, for those who waited for it. Attempts are told apart by a random id."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict | None:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None

    def write(self, message: str) -> None:
        with contextlib.suppress(OSError):  # the error itself matters more than telling the others
            partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
            partial.write_text(json.dumps({"attempt": uuid.uuid4().hex, "message": message}), encoding="utf-8")
            os.replace(partial, self.path)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)
