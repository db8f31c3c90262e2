"""SHA-256 digests that detect damaged files, in the form that ``sha256sum`` prints.

They do not protect against intent: whoever can write a file can also write its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_BLOCK = 1 << 22
_EMPTY = '"digest": ""'
_DIGEST = re.compile(r'"digest": "([0-9a-f]{64})"(?=\n}\n$)')


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Of files by name, hexadecimal; reads each whole. May raise :class:`OSError`."""
    return {name: digest_of(folder / name) for name in names}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; read in blocks. May raise :class:`OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def damage(folder: Path, files: dict[str, str]) -> str | None:
    """What is wrong with the first of ``files`` (name → digest) that is not as it was written; None of whole ones."""
    for name, wanted in files.items():
        try:
            found = digest_of(folder / name)
        except OSError as exc:
            return f"{folder / name} cannot be read ({exc.strerror})"
        if found != wanted:
            return f"{folder / name} is not as it was written (its SHA-256 is another)"
    return None


def sealed(content: dict[str, Any]) -> str:
    """``content`` as JSON with a last key ``digest``: that of the text, with an empty string instead of its value."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps({**plain, "digest": ""}, indent=1, ensure_ascii=False) + "\n"
    before, after = text.rsplit(_EMPTY, 1)
    return f'{before}"digest": "{hashlib.sha256(text.encode()).hexdigest()}"{after}'


def unsealed(data: bytes) -> dict[str, Any]:
    """The content of what :func:`sealed` made. Raises :class:`ValueError` if it is not as it was written."""
    text = data.decode("utf-8")
    content = json.loads(text)
    found = _DIGEST.search(text)
    if found is None:
        raise ValueError("it does not end in its digest")
    plain = text[: found.start()] + _EMPTY + text[found.end() :]
    if hashlib.sha256(plain.encode()).hexdigest() != found[1]:
        raise ValueError("it is not as it was written: its SHA-256 is another")
    return content


def sync(path: Path) -> None:
    """Returns when the file, or the names in the folder, are on the disk. May raise :class:`OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
