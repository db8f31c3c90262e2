"""Reads from source whether a module keeps the rule of :mod:`nemo_rpo.megatron.compat`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

THEIRS = ("torch", "megatron", "transformer_engine")
_PUBLIC = ("_asdict", "_fields", "_make", "_replace", "_exit")  # of named tuples and of os, in Python's documentation


def violations(path: str, source: str) -> list[str]:
    """``path:line what it does`` for each private name of another package, each replaced name of :data:`THEIRS`, each
    changed class, and ``unittest`` in a module of ours.
    """
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    theirs = {
        alias.asname or alias.name.split(".")[0]
        for node in imports
        for alias in node.names
        if _full_name(node, alias).split(".")[0] in THEIRS
    }
    found = [(node.lineno, f"imports {name}") for node in imports for name in _forbidden_imports(node)]
    own = _own_names(nodes)
    found += [(node.lineno, said) for node in nodes for said in _breaks(node, theirs, own)]
    return [f"{path}:{line} {said}" for line, said in sorted(found)]


def _full_name(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    return f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name


def _forbidden_imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    for name in (_full_name(node, alias) for alias in node.names):
        parts = name.split(".")
        if parts[0] == "unittest":
            yield name
        elif parts[0] in THEIRS:
            yield from filter(_private, parts)


def _own_names(nodes: list[ast.AST]) -> set[str]:
    """Attributes and methods that the module itself defines."""
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and _root(node) in ("self", "cls")}
    return own | {_root(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}


def _breaks(node: ast.AST, theirs: set[str], own: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        if _private(node.attr) and _root(node) not in ("self", "cls") and node.attr not in own:
            yield f"reads .{node.attr}"
        if isinstance(node.ctx, ast.Store | ast.Del):
            if node.attr == "__class__":
                yield "sets __class__"
            elif _root(node) in theirs:
                yield f"sets {ast.unparse(node)}"
    if isinstance(node, ast.Call) and _root(node.func) == "setattr" and _root(node.args[0]) in theirs:
        yield f"sets {ast.unparse(node.args[0])}"


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC


def _root(node: ast.AST) -> str:
    """The name at the head of ``name.a.b``; empty for anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
