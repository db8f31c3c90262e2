"""Which releases of Megatron-Core are supported, and what happens with another one."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from nemo_rpo.errors import ReleaseError
from nemo_rpo.megatron.compat import places

OLDEST, TOO_NEW = (0, 16, 1), (0, 20)  # tested on both ends; pyproject.toml asks pip for the same


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without what follows them: Megatron-Core 0.19 appends the hash of whatever git
    repository surrounds it.

    >>> release("0.19.2+3d94510"), release("0.17.0rc0"), release("0.20")
    ((0, 19, 2), (0, 17, 0), (0, 20))
    """
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def check_megatron_core(version: str) -> str | None:
    """A notice for a release that is newer than the tested ones; None for a supported one.

    Raises :class:`ReleaseError` for an older one, and for a newer one in which something that is reached for has moved.
    """
    if release(version) < OLDEST:
        raise ReleaseError(
            f"megatron-core {version} is too old: install megatron-core>={_text(OLDEST)},<{_text(TOO_NEW)}"
        )
    if release(version) < TOO_NEW:
        return None
    if gone := _moved():
        raise ReleaseError(
            f"megatron-core {version} is newer than nemo_rpo supports, and has changed ({'; '.join(gone)}): install "
            f"megatron-core>={_text(OLDEST)},<{_text(TOO_NEW)}"
        )
    return (
        f"megatron-core {version} is newer than those that nemo_rpo is tested with (below {_text(TOO_NEW)}); what it "
        "needs of Megatron's internals is there"
    )


def _moved() -> list[str]:
    """:func:`~nemo_rpo.megatron.compat.places.moved`, with every module of this package read, less what concerns
    packages that need not be installed.
    """
    import_all()
    return [line for line in places.moved() if not line.startswith("transformer_engine.")]


def import_all() -> None:
    """Imports the modules of this package, whose reaches are then registered."""
    for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{found.name}")


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
