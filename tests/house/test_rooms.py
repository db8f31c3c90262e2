"""The rooms stay small enough to be seen at a glance."""

from __future__ import annotations

import ast
from collections import Counter

from paths import ROOT

MOST_MODULES = 15


def test_no_folder_holds_more_modules_than_a_newcomer_reads():
    package = ROOT / "nemo_rpo"
    modules = Counter(path.parent for path in package.rglob("*.py") if path.name != "__init__.py")
    assert len(modules) > 30
    assert {str(folder.relative_to(ROOT)): n for folder, n in modules.items() if n > MOST_MODULES} == {}


def test_no_module_is_called_like_what_it_holds():
    for path in (ROOT / "nemo_rpo").rglob("*.py"):
        held = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert path.stem not in held, path
