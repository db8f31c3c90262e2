"""``run.json``: the state of the run at a checkpoint, and digests of its files. Needs no Megatron.

``files`` has the SHA-256 of every other file, ``digest`` that of ``run.json`` itself (:mod:`nemo_rpo.digests`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_rpo.digests import sealed, unsealed
from nemo_rpo.errors import CheckpointError

RUN_FILE = "run.json"
FORMAT = 2  # of a checkpoint; those of 1 have no number, no digests, and pickles among their tensors


def write_run(folder: Path, run: dict[str, Any], files: dict[str, str]) -> None:
    """Writes ``run.json``; ``files``: digests by name, empty where none were made. May raise :class:`OSError`."""
    (folder / RUN_FILE).write_text(sealed({**run, "format": FORMAT, "files": files}), encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint.

    Raises:
        CheckpointError: the folder is no checkpoint of this package, or the file is not as it was written.
    """
    path = folder / RUN_FILE
    try:
        data = path.read_bytes()
        run = json.loads(data)
        if not isinstance(run, dict):
            raise ValueError("it is no JSON object")
        return unsealed(data) if {"format", "digest"} & run.keys() else run
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read ({exc.strerror}): {or_another(folder)}") from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is damaged ({exc}): {or_another(folder)}") from exc


def check_format(folder: Path, run: dict[str, Any]) -> None:
    """Raises :class:`CheckpointError` where a run cannot go on from the checkpoint, for its version."""
    found = run.get("format", 1)
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} is a checkpoint of format {found}, from {'an older' if found == 1 else 'another'} version of "
            f"this package, and this one goes on from format {FORMAT}: end the run with that version, or start a new "
            "one from its weights (pretrained_checkpoint.restore_from_path takes them) in another folder"
        )


def or_another(folder: Path) -> str:
    """What to do about a checkpoint with a damaged file."""
    return f"restore it, or move {folder} away to go on from the checkpoint before it"
