"""What a command is to write, checked before it computes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nemo_rpo.data.files.read import is_file, is_folder
from nemo_rpo.data.files.whole import check_place
from nemo_rpo.errors import ConfigError


def check_outputs(
    outs: Iterable[Path | None], inputs: Iterable[Path | str | None] = (), overwrite: bool = True
) -> None:
    """Checks that each of ``outs`` has a place (:func:`nemo_rpo.data.files.whole.check_place`), is none of ``inputs``,
    and none of the others, whatever name the file goes by there.

    Raises:
        ConfigError: a folder that is missing, a name that is taken, or a file that is read too and would be lost.
    """
    read = [Path(path) for path in inputs if path is not None and _exists(Path(path))]
    places: set[Path] = set()
    for out in outs:
        if out is None:
            continue
        check_place(out)
        if out.exists() and any(_loses(out, path) for path in read):
            raise ConfigError(f"{out} is read too, and would be lost; name another file to write")
        check_place(out, overwrite)
        place = out.resolve()
        if place in places:
            raise ConfigError(f"{out} is to be written twice; name another file")
        places.add(place)


def _exists(path: Path) -> bool:
    return is_file(path) or is_folder(path)


def _loses(out: Path, path: Path) -> bool:
    """Whether writing ``out`` takes ``path`` away: the same, a folder around it, or a part of it."""
    written, read = out.resolve(), path.resolve()
    return out.samefile(path) or written in read.parents or written.parent == read
