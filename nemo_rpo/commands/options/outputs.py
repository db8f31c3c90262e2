"""What a command is to write, checked before it computes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nemo_rpo.errors import ConfigError


def check_outputs(outs: Iterable[Path | None], inputs: Iterable[Path | str | None] = ()) -> None:
    """Checks that each of ``outs`` has a folder and is none of ``inputs``, whatever name the file goes by there.

    Raises:
        ConfigError: a folder that is missing, or a file that is read too and would be lost.
    """
    read = [Path(path) for path in inputs if path is not None and Path(path).exists()]
    for out in outs:
        if out is None:
            continue
        if not out.parent.is_dir():
            raise ConfigError(f"folder {out.parent} does not exist; make it, or name another place")
        if out.exists() and any(out.samefile(path) for path in read):
            raise ConfigError(f"{out} is read too, and would be lost; name another file to write")
