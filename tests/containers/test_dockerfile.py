"""Every step of the Dockerfile after its base, and the health check, run for real in a folder that stands for it.

What NVIDIA's base brings is this environment's packages, seen from fresh virtual environments at the places where the
base has its own. Only ``useradd`` is not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from paths import ROOT

DOCKERFILE = ROOT / "Dockerfile"


@dataclass
class Stage:
    """What one target of the Dockerfile does."""

    base: str
    copies: list[tuple[str, list[str], str]] = field(default_factory=list)  # from stage, files, place
    runs: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found: dict[str, Stage] = {}
    stage = None
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base)
        elif word == "COPY":
            *paths, place = rest.split()
            origin = paths.pop(0).removeprefix("--from=") if paths[0].startswith("--from=") else ""
            stage.copies.append((origin, paths, place))
        elif word == "RUN":
            stage.runs.append(rest)
        elif word == "USER":
            stage.users.append(rest)
        elif word == "HEALTHCHECK":
            stage.health = json.loads(rest.partition("CMD ")[2])
        else:
            assert word in ("", "ARG", "CMD", "WORKDIR"), f"this test does not know {word}"
    return found


def copy(stage: Stage, image: Path) -> None:
    for origin, paths, place in stage.copies:
        if origin:
            copy(stages()[origin], image / place[1:])
            continue
        target = image / place[1:]
        (target if place.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        for path in paths:
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / path, target)


def environment_at(folder: Path) -> None:
    """A virtual environment that has this one's packages, as the base's have NVIDIA's; those in editable mode not."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "base.pth").write_text(sysconfig.get_path("purelib"))


# Where an environment of the base is, by target.
ENVIRONMENTS = {
    "nemo": ["opt/venv"],
    "nemo-rl": ["opt/nemo_rl_venv", "opt/ray_venvs/nemo_rl.models.policy.workers.MegatronPolicyWorker"],
}


@pytest.mark.parametrize("target", ENVIRONMENTS)
def test_a_target_installs_and_is_healthy(target: str, tmp_path: Path) -> None:
    stage, image = stages()[target], tmp_path / "image"
    for place in ENVIRONMENTS[target]:
        environment_at(image / place)
    (image / "root").mkdir()
    (image / "opt/nemo-rl/examples/configs").mkdir(parents=True)
    copy(stage, image)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "useradd").write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/added"\n')
    (stubs / "useradd").chmod(0o755)
    (stubs / "python3").symlink_to(sys.executable)

    def inside(text: str) -> str:
        return re.sub(r"(?<![\w./-])/(opt|root)\b", rf"{image}/\1", text)

    first = image / ENVIRONMENTS[target][0] / "bin"
    path = os.pathsep.join([str(stubs), str(first), "/usr/bin", "/bin"])
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"PATH": path, "PYTHONNOUSERSITE": "1"}
    for run in stage.runs:
        done = subprocess.run(["/bin/sh", "-c", inside(run)], env=clean, cwd=image, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    uid = (stubs / "added").read_text().split("--uid ")[1].split()[0]
    assert stage.users[-1] == uid != "0"

    for place in ENVIRONMENTS[target]:
        where = "import nemo_rpo; print(nemo_rpo.__file__)"
        found = subprocess.run([image / place / "bin/python", "-c", where], env=clean, cwd=image, capture_output=True)
        assert found.stdout.decode().startswith(f"{image / place}/")  # installed there, not seen from elsewhere
    check = [inside(word) for word in stage.health]
    check[0] = shutil.which(check[0], path=path)
    healthy = subprocess.run(check, env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert healthy.returncode == 0 and healthy.stdout.startswith("trained 2 steps"), healthy.stderr


def test_install_refuses_what_it_does_not_know() -> None:
    install = ["bash", ROOT / "docker/install.sh"]
    for given, said in (
        (["engin", "python"], "engin is neither engine nor losses"),
        (["engine"], "name the interpret"),
    ):
        result = subprocess.run([*install, *given], capture_output=True, text=True)
        assert result.returncode == 2 and result.stderr.startswith(f"install.sh: {said}")


def test_the_bases_are_pinned_arguments() -> None:
    text = DOCKERFILE.read_text()
    for name in ("NEMO_BASE", "NEMO_RL_BASE"):
        assert re.search(rf"^ARG {name}=nvcr\.io/nvidia/[\w-]+:v?[\d.]+$", text, re.MULTILINE)
    assert [stages()[name].base for name in ENVIRONMENTS] == ["${NEMO_BASE}", "${NEMO_RL_BASE}"]


@pytest.mark.parametrize(("tool", "file"), [("hadolint", "Dockerfile"), ("shellcheck", "docker/install.sh")])
def test_it_is_clean(tool: str, file: str) -> None:
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{tool} is not installed; run: pip install 'nemo-rpo[dev]'")
    result = subprocess.run([found, ROOT / file], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stdout, result.stdout
