"""Where settings come from: YAML files, the files in their ``defaults:``, and ``key=value`` overrides."""

from __future__ import annotations

import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.read import is_file
from nemo_rpo.errors import ConfigError, first_line, missing_extra

try:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ImportError as exc:
    raise missing_extra("omegaconf", "mcore") from exc

from yaml import YAMLError

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_][\w.\[\]]*)(?:=(?P<value>.*))?", re.DOTALL)

# Of a source checkout, and of an installed wheel.
_RECIPES = (Path(__file__).parents[3] / "conf", Path(sysconfig.get_path("data"), "share", "nemo_rpo", "conf"))


@dataclass(frozen=True)
class Source:
    """The settings of one file; ``where`` names it in messages."""

    where: str
    tree: dict[str, Any]


@dataclass(frozen=True)
class Override:
    """One ``key=value`` of the command line; ``delete`` stands for Hydra's ``~key``."""

    where: str
    key: str
    value: Any
    delete: bool = False


def find_config(name: str, config_path: str | Path | None) -> Path:
    """The YAML file that ``--config-name`` (with or without ``.yaml``) or a path means.

    Without ``config_path`` it is looked for in ``conf`` and ``.`` of the working folder, then among the recipes that
    came with the package.
    """
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    folders = [Path(config_path)] if config_path else [Path("conf"), Path(), *filter(Path.is_dir, _RECIPES)]
    for folder in folders:
        if is_file(folder / file):
            return folder / file
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ConfigError(
        f"no {file} in {', '.join(str(folder) for folder in folders)}"
        + (f"; there are: {', '.join(known)}" if known else "; give its folder with --config-path")
    )


def read_files(path: Path, notices: list[str], parents: tuple[Path, ...] = ()) -> list[Source]:
    """``path`` and the files of its ``defaults:`` in the order of merging, Hydra's: itself last, or at ``_self_``.

    Entries that Hydra would call optional are config groups of NeMo, which mean nothing here; they go to ``notices``.
    """
    if path.resolve() in parents:
        raise ConfigError(f"{path}: its defaults: lead back to itself")
    tree = _read(path)
    entries = tree.pop("defaults", None) or []
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: defaults: must be a list of YAML files beside it; got {entries!r}")
    sources, own = [], Source(f"in {path}", tree)
    for entry in [*entries, *([] if "_self_" in entries else ["_self_"])]:
        if entry == "_self_":
            sources.append(own)
        elif isinstance(entry, str) and "@" not in entry:
            beside = find_config(entry, path.parent)
            sources += read_files(beside, notices, (*parents, path.resolve()))
        elif (group := _optional_group(entry)) is not None:
            notices.append(f"defaults: {group}")
        else:
            raise ConfigError(f"{path}: defaults: takes names of YAML files beside it; got {_flow(entry)}")
    return sources


def parse_override(text: str) -> Override:
    """``key=value``, with Hydra's signs: ``+key=`` and ``++key=`` mean the same here, ``~key`` takes a setting back."""
    match = _OVERRIDE.fullmatch(text)
    if match is None or (match["value"] is None) != (match["sign"] == "~"):
        raise ConfigError(f"override {text!r} is not key=value")
    if match["sign"] == "~":
        return Override(f"override {text}", match["key"], None, delete=True)
    advice = "quote the value, and put a space after each ':'"
    # Hydra (and some YAML parsers) take {a:[b]} for {a: [b]}.
    written = re.sub(r"(?<=\w):(?=[\[{])", ": ", match["value"]) if match["value"].startswith("{") else match["value"]
    try:
        # Hydra's "key=" is the empty text, YAML's is null.
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={written}"]))["v"] if written else ""
    except YAMLError as exc:
        raise ConfigError(f"override {text!r}: {_problem(exc)}; {advice}") from exc
    except (OmegaConfBaseException, ValueError, RecursionError) as exc:
        raise ConfigError(f"override {text[:200]!r}: {first_line(exc)}; {advice}") from exc
    if isinstance(value, dict) and any(":" in str(key) and below is None for key, below in value.items()):
        raise ConfigError(f"override {text!r}: a ':' without a space; {advice}")
    return Override(f"override {text}", match["key"], value)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except YAMLError as exc:
        raise ConfigError(f"{path}: {_problem(exc)}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except (OmegaConfBaseException, ValueError, RecursionError) as exc:  # "${", a key that is null, ever deeper lists
        raise ConfigError(f"{path}: {first_line(exc)}") from exc
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections such as model: and trainer:; got {tree!r}")
    _check_keys(path, tree)
    return tree


def _check_keys(path: Path, tree: Any, parent: str = "") -> None:
    if isinstance(tree, dict):
        for key, below in tree.items():
            if key is None or isinstance(key, bool | float | bytes):
                raise ConfigError(f"{path}: {parent or 'the file'} has the key {key!r}; a setting is called by a word")
            _check_keys(path, below, f"{parent}.{key}".lstrip("."))


def _problem(exc: YAMLError) -> str:
    mark = getattr(exc, "problem_mark", None)
    return (f"line {mark.line + 1}: " if mark else "") + str(getattr(exc, "problem", None) or exc)


def _optional_group(entry: Any) -> str | None:
    if isinstance(entry, dict) and len(entry) == 1 and str(next(iter(entry))).startswith("optional "):
        return _flow(entry)
    return None


def _flow(entry: Any) -> str:
    if isinstance(entry, dict):
        return ", ".join(f"{key}:" if value is None else f"{key}: {value}" for key, value in entry.items())
    return str(entry)
