"""The files of a ``.nemo``: members of an uncompressed tar, read in place, or the folder that it unpacks to."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from nemo_rpo.errors import CheckpointError

CONFIG_FILE = "model_config.yaml"
_GZIP = b"\x1f\x8b"


def is_nemo(path: str | Path) -> bool:
    """Whether ``path`` is a file (no other checkpoint is one file) or a folder with a ``model_config.yaml``."""
    path = Path(path)
    return path.is_file() or (path / CONFIG_FILE).is_file()


class NemoArchive:
    """The regular files under ``path`` by their name, ``model_weights/common.pt`` or the like. Nothing is unpacked.

    A context manager. Raises :class:`CheckpointError` if ``path`` is neither an uncompressed tar nor a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tar: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}
        if self.path.is_dir():
            files = (Path(top, name) for top, _, below in os.walk(self.path) for name in below)
            self.names = frozenset(file.relative_to(self.path).as_posix() for file in files)
            return
        try:
            self._tar = tarfile.open(self.path, "r:")
            # NeMo's names begin with "./". A link could lead anywhere, so it counts as absent.
            self._members = {str(PurePosixPath(m.name)): m for m in self._tar if m.isreg()}
        except tarfile.TarError as exc:
            raise CheckpointError(f"{self.path} is {_unreadable(self.path, exc)}") from exc
        except OSError as exc:
            raise CheckpointError(f"{self.path} cannot be read: {exc}") from exc
        self.names = frozenset(self._members)

    def __enter__(self) -> NemoArchive:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream of the file ``name``. Raises :class:`CheckpointError` if it is not there."""
        if name not in self.names:
            raise CheckpointError(f"{self.path} has no file {name}; restore it, or save the model again")
        if self._tar is None:
            return (self.path / name).open("rb")
        return self._tar.extractfile(self._members[name])

    def read(self, name: str, offset: int = 0, length: int = -1) -> bytes:
        """``length`` bytes of the file ``name`` from ``offset`` on; -1: to its end."""
        with self.open(name) as file:
            file.seek(offset)
            return file.read(length)

    def stream(self, name: str, offset: int, length: int) -> io.BytesIO:
        """:meth:`read`, as a stream of its own."""
        return io.BytesIO(self.read(name, offset, length))


def _unreadable(path: Path, exc: Exception) -> str:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    if compressed:
        return "a compressed archive: unpack it into a folder (tar -xzf) and name the folder"
    return f"not a .nemo archive ({exc}); name a .nemo file, or the folder of a checkpoint"
