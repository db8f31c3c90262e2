"""The types of values in the description of a model that another program has written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from nemo_rpo.errors import CheckpointError


def check_values(
    config: Mapping[str, Any],
    where: str,
    whole: Collection[str] = (),
    positive: Collection[str] = (),
    flags: Collection[str] = (),
    objects: Collection[str] = (),
) -> None:
    """Raises :class:`CheckpointError`, naming the key, where a value is of another type or sign; null is absent.

    Args:
        whole: keys of whole numbers above 0. positive: of numbers above 0. flags: of booleans. objects: of objects.
    """
    kinds: tuple[tuple[Collection[str], str, Callable[[Any], bool]], ...] = (
        (whole, "a positive whole number", _is_whole),
        (positive, "a positive number", _is_positive),
        (flags, "true or false", lambda value: isinstance(value, bool)),
        (objects, "an object", lambda value: isinstance(value, Mapping)),
    )
    for keys, what, fits in kinds:
        for key in keys:
            value = config.get(key)
            if value is not None and not fits(value):
                shown = value if isinstance(value, bool | int | float) and abs(value) < 1e18 else str(type(value))
                raise CheckpointError(f"{where}: {key} must be {what}, found {shown}")


def check_heads(heads: int, groups: int | None, where: str) -> None:
    """Raises :class:`CheckpointError` where the heads cannot be shared out to the query groups."""
    if groups and heads % groups:
        raise CheckpointError(f"{where}: {groups} query groups do not divide {heads} attention heads")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
