"""The rooms stay small enough to be seen at a glance."""

from __future__ import annotations

import ast
import re
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


def test_the_readme_lists_every_room():
    """By its path, or (an inner room) by its name in the row of the room around it."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("| room | what it holds |")[1]
    rows = {row.split("|")[1]: row for row in table.splitlines() if row.count("|") == 3}
    listed = {name for rooms in rows for name in re.findall(r"`([^`]+)`", rooms)}
    listed = {name.removeprefix("nemo_rpo/") for name in listed}
    package = ROOT / "nemo_rpo"
    rooms = {str(folder.relative_to(package)) for folder in package.iterdir() if (folder / "__init__.py").exists()}
    assert len(rooms) > 15
    assert rooms - listed == set()
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "_version.py"}
    assert files - listed == set()
