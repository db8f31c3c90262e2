"""Builds the wheel, installs it into an empty environment of each Python named, and asks it for a table of annotators.

``python tests/wheel.py python3.11 python3.12``, from anywhere. torch and numpy are lent by this interpreter where the
Python is of its version. Another one gets numpy from the index, and runs the commands that need no more: torch for it
would be a download of hundreds of megabytes. The time is that from an empty environment to the table.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(pythons: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = build(folder)
        votes = write_votes(folder / "votes.csv")
        pythons = [python if runs(python) else beside_the_shim(python) for python in pythons]
        found = [python for python in pythons if runs(python)]
        for python in pythons:
            if python in found:
                install_and_run(folder, python, wheel, votes)
            else:
                print(f"{python}: not on this machine, skipped")
    return 0 if found else 1


def runs(python: str) -> bool:
    """Whether there is such an interpreter: a shim of a version manager may be all there is."""
    there = shutil.which(python)
    return there is not None and subprocess.run([there, "-c", ""], capture_output=True).returncode == 0


def beside_the_shim(python: str) -> str:
    """pyenv's newest interpreter of that name, where its shim is one for a version that is not switched on."""
    name = Path(python).name
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places = sorted(versions.glob(f"*/bin/{name}"), key=lambda path: [int(x) for x in re.findall(r"\d+", str(path))])
    return str(places[-1]) if places else python


def build(folder: Path) -> Path:
    """From a copy, so that a checkout is left as it was."""
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "results"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", "."]
    call(pip, cwd=copy)
    [wheel] = (folder / "dist").glob("*.whl")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    return wheel


def install_and_run(folder: Path, python: str, wheel: Path, votes: Path) -> None:
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix=f"{Path(python).name}-", dir=folder))  # two may share their last name
    call([python, "-m", "venv", home])
    own = home / "bin" / "python"
    call([own, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel])
    with_torch = lend(own)
    command = home / "bin" / "nemo-rpo"
    out = call([command, "--version"], cwd=home)
    assert out.startswith("nemo-rpo "), out
    where = call([own, "-c", "import nemo_rpo; print(nemo_rpo.__file__)"], cwd=home)
    assert str(home) in where, where  # not the checkout's
    assert (home / "share" / "nemo_rpo" / "conf" / "gpt_rpo.yaml").is_file()  # where the recipes are looked for
    if not with_torch:
        call([own, "-m", "pip", "install", "--quiet", "numpy"])
        assert "1,200" in call([command, "validate", votes], cwd=home)
        call([command, "convert", votes, "--to", "votes", "--out", home / "votes.jsonl"], cwd=home)
        print(f"{python}: {out.strip()} installed, validate and convert run; its table needs torch, which is not there")
        return
    table = call([command, "annotators", votes], cwd=home)
    assert "careless" in table and "retrain" in table, table
    call([command, "validate", votes], cwd=home)
    print(f"{python}: {time.monotonic() - began:.1f} s from an empty environment to the first table of annotators")


def lend(python: Path) -> bool:
    """Puts this interpreter's packages behind those of ``python``, if it is of the same version."""
    version = call([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    if version != f"{sys.version_info.major}.{sys.version_info.minor}":
        return False
    site = call([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(site, "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return True


def write_votes(path: Path) -> Path:
    """Four annotators on 300 pairs, one of them careless."""
    draw = random.Random(0)
    lines = ["pair_id,prompt,chosen,rejected,annotator"]
    for pair in range(300):
        for name, right in (("ann", 0.95), ("bob", 0.9), ("cas", 0.9), ("careless", 0.5)):
            sides = ("fine", "poor") if draw.random() < right else ("poor", "fine")
            lines.append(f"p{pair},question {pair},{sides[0]} {pair},{sides[1]} {pair},{name}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def call(command: list, cwd: Path | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [sys.executable]))
