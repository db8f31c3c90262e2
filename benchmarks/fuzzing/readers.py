"""What a case is, and how the readers of files are called."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fuzzing.damage import damage_bytes, damage_value

from nemo_rpo.cli import main
from nemo_rpo.errors import RPOError


class Outcome(NamedTuple):
    """``taken`` or ``refused``, and the line that says why."""

    kind: str
    said: str = ""


class Refused(Exception):
    """A reader's answer in one line."""


class Wrong(Exception):
    """What must not be."""


@dataclass(frozen=True)
class Target:
    """How to run it on a damaged input: with a folder of its own, and that of inputs made beforehand; and how often."""

    run: Callable[[random.Random, Path, Path], Outcome]
    weight: float = 1.0


def command(argv: list[str], allowed: tuple[int, ...], out: Path | None = None) -> Outcome:
    """Runs a command; a refusal is one line on standard error and leaves no ``out``."""
    said = io.StringIO()
    folder = Path(argv[1]).parent if out is None else out.parent
    before = set(folder.iterdir())
    try:
        with contextlib.redirect_stderr(said):
            status = main(argv)
    except SystemExit as exc:
        raise Wrong(f"SystemExit {exc.code} of {argv}") from exc
    new = {path.name for path in set(folder.iterdir()) - before}
    if status not in allowed:
        raise Wrong(f"exit status {status} of {argv}: {said.getvalue()[-300:]}")
    if out is not None and (out.name in new) != (status != 2):
        raise Wrong(f"exit status {status} of {argv}, and {out.name} {'is' if out.name in new else 'is not'} there")
    if left := new - ({out.name} if out else set()):
        raise Wrong(f"{argv} left {sorted(left)}")
    return Outcome("refused", said.getvalue()) if status == 2 else Outcome("taken")


def refusing(work: Callable[[], object]) -> Outcome:
    """Runs a reader of the package itself."""
    try:
        work()
    except RPOError as exc:
        raise Refused(str(exc)) from None
    return Outcome("taken")


def refusing_and(work: Callable[[], object], left: Callable[[], list[Path]]) -> Outcome:
    """:func:`refusing`, and nothing half-written afterwards either way."""
    try:
        return refusing(work)
    finally:
        if found := left():
            raise Wrong(f"left {sorted(path.name for path in found)}")


def damaged_copy(rng: random.Random, source: Path, folder: Path) -> Path:
    """A copy of a file or folder with one damaged file."""
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target)
        victim = rng.choice(sorted(path for path in target.rglob("*") if path.is_file()))
    else:
        shutil.copy(source, target)
        victim = target
    text = victim.read_bytes()
    if rng.random() < 0.05:
        return target  # whole ones are taken
    if rng.random() < 0.5 and victim.suffix == ".json":
        try:
            victim.write_text(json.dumps(damage_value(rng, json.loads(text), rng.choice([1, 1, 3]))))
        except ValueError:
            victim.write_bytes(damage_bytes(rng, text))
    elif rng.random() < 0.1:
        victim.unlink()
    else:
        victim.write_bytes(damage_bytes(rng, text))
    return target
