"""The list of reaches, and how a place upstream is looked for."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_PLACE = re.compile(r"(?P<module>[\w.]+):(?P<path>[\w.]+)(\((?P<takes>[^)]*)\))?(\[(?P<mentions>[^]]*)\])?")


class Reach(NamedTuple):
    """One function of this package and the upstream places that it needs."""

    name: str
    reason: str
    places: tuple[str, ...]


REACHES: dict[str, Reach] = {}


def reaches(*places: str) -> Callable[[F], F]:
    """Registers the decorated function in :data:`REACHES`; its docstring is the reason.

    A place is ``module:path``, with the arguments that it must take in parentheses, or the names that its source must
    mention in brackets: ``torch.optim:AdamW``, ``torch.nn.functional:pad(input, mode)``,
    ``torch.nn:Module[_parameters]``.
    """

    def register(function: F) -> F:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        REACHES[name] = Reach(name, inspect.cleandoc(function.__doc__ or ""), places)
        return function

    return register


def whats_wrong(place: str) -> str | None:
    """What is missing at ``place`` in the installed release; None where all is as the reach expects.

    >>> whats_wrong("torch.nn.functional:pad(input, mode)")
    >>> whats_wrong("torch.nn.functional:pad(inputs)")
    'torch.nn.functional:pad takes no inputs'
    >>> whats_wrong("torch.nn:Module.parameterz")
    'torch.nn has no Module.parameterz'
    """
    found = _PLACE.fullmatch(place)
    assert found is not None, place
    module, path = found["module"], found["path"]
    try:
        here: Any = importlib.import_module(module)
    except ImportError as exc:
        return f"{module} cannot be imported ({exc})"
    for name in path.split("."):
        fields = getattr(here, "__dataclass_fields__", {})
        if not hasattr(here, name) and name not in fields:
            return f"{module} has no {path}"
        here = getattr(here, name, None)
    for name in _names(found["takes"]):
        if name not in inspect.signature(here).parameters:
            return f"{module}:{path} takes no {name}"
    for name in _names(found["mentions"]):
        if not re.search(rf"\b{name}\b", _source(here)):
            return f"{module}:{path} knows no {name}"
    return None


def moved() -> list[str]:
    """``reach: what is missing`` for every place that is not as expected in the installed releases."""
    found = ((reach.name, whats_wrong(place)) for reach in REACHES.values() for place in reach.places)
    return [f"{name}: {wrong}" for name, wrong in found if wrong is not None]


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _source(here: Any) -> str:
    """The source of a function, or of a class and those that it inherits from in the same distribution."""
    if not inspect.isclass(here):
        return inspect.getsource(here)
    family = [kind for kind in here.__mro__ if kind.__module__.split(".")[0] == here.__module__.split(".")[0]]
    return "\n".join(map(inspect.getsource, family))
