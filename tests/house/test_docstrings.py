"""Every public class and function of the package says what it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

PACKAGE = ROOT / "nemo_rpo"


def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def classes(trees: dict[Path, ast.Module]) -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def methods(cls: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}


def documented_above(cls: ast.ClassDef, name: str, known: dict[str, ast.ClassDef]) -> bool:
    """Whether a base class of the package documents the method ``name``; an override then inherits its contract."""
    for base in cls.bases:
        above = known.get(ast.unparse(base).split("[")[0].split(".")[-1])
        if above is None:
            continue
        method = methods(above).get(name)
        if (method is not None and ast.get_docstring(method)) or documented_above(above, name, known):
            return True
    return False


def undocumented(trees: dict[Path, ast.Module]) -> Iterator[str]:
    known = classes(trees)
    for path, tree in trees.items():
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for name, method in methods(node).items() if isinstance(node, ast.ClassDef) else ():
                if not (name.startswith("_") or ast.get_docstring(method) or documented_above(node, name, known)):
                    yield f"{path.relative_to(ROOT)}:{method.lineno} {node.name}.{name}"


def test_everything_public_has_a_docstring():
    assert list(undocumented(modules())) == []


def test_a_missing_docstring_is_found():
    base = "class A:\n    'doc'\n    def f(self): 'doc'\n"
    bare = ast.parse(base + "class B(A):\n    'doc'\n    def f(self): ...\n    def g(self): ...")
    assert list(undocumented({ROOT / "x.py": bare})) == ["x.py:7 B.g"]
