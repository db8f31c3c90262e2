"""Packages whose public names are imported when they are first used (PEP 562), so that settings can be read without
torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of ``package``.

    ``modules`` has the public names by the module, relative to the package, that defines them. A type checker does not
    run this: the package imports the same names under ``TYPE_CHECKING`` too.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next look-up finds it at once
        return value

    return sorted(home), get, lambda: sorted({*vars(sys.modules[package]), *home})
