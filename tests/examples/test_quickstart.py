"""The quickstart: the committed notebook is the script's, and it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT, NOTEBOOK = ROOT / "examples" / "quickstart.py", ROOT / "examples" / "quickstart.ipynb"


def sources(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]


def build(out: Path) -> Path:
    command = [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", "--output", str(out), str(SCRIPT)]
    subprocess.run(command, check=True)
    return out


def test_the_notebook_is_the_script_and_runs(tmp_path):
    pytest.importorskip("jupytext", reason="notebooks need jupytext: pip install 'nemo-rpo[dev]'")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    built = build(tmp_path / "quickstart.ipynb")
    assert sources(built) == sources(NOTEBOOK), "run: make notebook"
    assert sum(len(cell.get("outputs", ())) for cell in json.loads(NOTEBOOK.read_text())["cells"]) >= 5
    notebook = nbformat.read(built, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    right = {name: float(said.split(f"{name}: right on ")[1].split()[0]) for name in ("plain", "robust")}
    assert right["robust"] > right["plain"]
