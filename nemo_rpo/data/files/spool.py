"""Values that are too many for memory, on disk until they are read back once, in order."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.read import BUFFER
from nemo_rpo.errors import ConfigError


class Spool:
    """A nameless temporary file, gone when it is closed or its process ends.

    Args:
        folder: on which disk; ``None`` for the system's place for temporary files.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to; from all methods.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._place = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            self._file = tempfile.TemporaryFile(buffering=BUFFER, dir=folder)
        except OSError as exc:
            raise self._full(exc) from exc
        self._lengths = array("q")

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):  # a full disk is full for what is still in the buffer too
            self._file.close()

    def add(self, value: Any) -> None:
        """Appends a value of plain types."""
        try:
            self._lengths.append(self._file.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))
        except OSError as exc:
            raise self._full(exc) from exc

    def __iter__(self) -> Iterator[Any]:
        try:
            self._file.seek(0)
            for length in self._lengths:
                yield pickle.loads(self._file.read(length))
        except OSError as exc:
            raise self._full(exc) from exc

    def _full(self, exc: OSError) -> ConfigError:
        return ConfigError(f"cannot write a temporary file in {self._place} ({exc.strerror or exc}); set TMPDIR")
