"""Files that are there whole or not at all: written under another name, and renamed when they are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_rpo.errors import ConfigError, RPOError


def check_place(path: Path, overwrite: bool = True) -> None:
    """Raises :class:`ConfigError` where nothing can be written: a folder that is missing, a name that is that of a
    folder (but for a saved Hugging Face data set) or that no file system takes, or without ``overwrite`` of anything.
    """
    try:
        there, is_folder, has_folder = path.exists(), path.is_dir(), path.parent.is_dir()
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written ({exc.strerror or exc}); name another place") from exc
    if is_folder and not (path / "state.json").is_file():
        named = path.name and not path.suffix
        advice = " that is no saved Hugging Face data set; name another one" if named else "; name a file"
        raise ConfigError(f"{path} is a folder{advice}")
    if there and not overwrite:
        raise ConfigError(f"{path} exists; name another file, or say --overwrite")
    if not has_folder:
        raise ConfigError(f"folder {path.parent} does not exist; make it, or name another place")


@contextlib.contextmanager
def whole_file(path: Path, error: type[RPOError], advice: str) -> Iterator[Path]:
    """The place to write to, beside ``path``, which it becomes when the block ends well.

    A block that fails leaves what was at ``path``, and nothing else. An :class:`OSError` of the block, a full disk say,
    is raised as ``error`` with ``advice`` on what to do.
    """
    writing = path.with_name(f".writing-{path.name}")
    try:
        yield writing
        os.replace(writing, path)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            writing.unlink()
        if isinstance(exc, OSError):
            raise error(f"{path} cannot be written ({exc.strerror or exc}); {advice}") from exc
        raise
