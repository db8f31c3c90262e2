"""``run.json``: where a checkpoint stood, and the digest of everything that it is made of. Plain files, no engine.

``files`` has the SHA-256 of every other file, as ``sha256sum`` prints it, and ``digest`` that of ``run.json`` itself
with an empty string instead of its value. They tell damage, not intent: whoever can write the files can write these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_rpo.errors import CheckpointError

RUN_FILE = "run.json"
FORMAT = 2  # of a checkpoint; those of 1 have no number, no digests, and pickles among their tensors
_EMPTY = '"digest": ""'
_DIGEST = re.compile(r'"digest": "([0-9a-f]{64})"(?=\n}\n$)')


def write_run(folder: Path, run: dict[str, Any], files: dict[str, str]) -> None:
    """Writes ``run.json``; ``files`` as :func:`digests_of` gives them, empty where none were made. May raise
    :class:`OSError`.
    """
    text = json.dumps({**run, "format": FORMAT, "files": files, "digest": ""}, indent=1) + "\n"
    before, after = text.rsplit(_EMPTY, 1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / RUN_FILE).write_text(f'{before}"digest": "{digest}"{after}', encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint.

    Raises:
        CheckpointError: the folder is no checkpoint of this package, or the file is not as it was written.
    """
    path = folder / RUN_FILE
    try:
        text = path.read_bytes().decode("utf-8")
        run = json.loads(text)
        if not isinstance(run, dict):
            raise ValueError("it holds no object")
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read ({exc.strerror}): restore it, or {_moved(folder)}") from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is damaged ({exc}): restore it, or {_moved(folder)}") from exc
    found = _DIGEST.search(text)
    if found is None:
        as_written = "format" not in run  # an older version's, which says nothing of itself
    else:
        plain = text[: found.start()] + _EMPTY + text[found.end() :]
        as_written = hashlib.sha256(plain.encode()).hexdigest() == found[1]
    if not as_written:
        raise CheckpointError(f"{path} is not as it was written: restore it, or {_moved(folder)}")
    return run


def check_format(folder: Path, run: dict[str, Any]) -> None:
    """Raises :class:`CheckpointError` where a run cannot go on from the checkpoint, for its version."""
    found = run.get("format", 1)
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} is a checkpoint of format {found}, from {'an older' if found == 1 else 'another'} version of "
            f"this package, and this one goes on from format {FORMAT}: end the run with that version, or start a new "
            "one from its weights (pretrained_checkpoint.restore_from_path takes them) in another folder"
        )


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by name, hexadecimal; reads each whole. May raise :class:`OSError`."""
    return {name: _sha256(folder / name) for name in names}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def damage(folder: Path, files: dict[str, str]) -> str | None:
    """What is wrong with the first of ``files`` (name → digest) that is not as it was written; None of whole ones."""
    for name, wanted in files.items():
        try:
            found = _sha256(folder / name)
        except OSError as exc:
            return f"{folder / name} cannot be read ({exc.strerror}): restore it, or {_moved(folder)}"
        if found != wanted:
            return f"{folder / name} is not as it was written (its SHA-256 is another): restore it, or {_moved(folder)}"
    return None


def sync(path: Path) -> None:
    """Returns when the file, or the names in the folder, are on the disk. May raise :class:`OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _moved(folder: Path) -> str:
    return f"move {folder} away to go on from the checkpoint before it"
