"""Pairs to be labelled, as the files that label tools import; what comes back is read like any other file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_rpo.conversion.tools import task
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError


@dataclass(frozen=True)
class LabelTask:
    """A pair that somebody is to label.

    Attributes:
        pair_id: by which the answer finds its pair again; a pair without an id of its own has its content's hash.
        prompt, first, second: what is shown; a dialogue as its turns, one under the other.
        more: what else the tool shows or keeps, all texts or numbers: whom to ask, say.
    """

    pair_id: str
    prompt: Text
    first: Text
    second: Text
    more: Mapping[str, Any] = field(default_factory=dict)


def _label_studio(of: LabelTask) -> dict[str, Any]:
    return task(of.pair_id, shown(of.prompt), shown(of.first), shown(of.second), dict(of.more))


def _argilla(of: LabelTask) -> dict[str, Any]:
    texts = {"prompt": shown(of.prompt), "response_a": shown(of.first), "response_b": shown(of.second)}
    return {"id": of.pair_id, **texts, **of.more}


def _csv(of: LabelTask) -> dict[str, Any]:
    texts = {"prompt": shown(of.prompt), "response_a": shown(of.first), "response_b": shown(of.second)}
    return {"pair_id": of.pair_id, **texts, "vote": "", **of.more}


TOOLS: dict[str, Callable[[LabelTask], dict[str, Any]]] = {
    "label_studio": _label_studio,
    "argilla": _argilla,
    "csv": _csv,
}
_ENDS = {"label_studio": (".json",), "argilla": (".jsonl", ".json", ".parquet"), "csv": (".csv",)}


def write_tasks(out: Path, tasks: Iterable[LabelTask], tool: str, overwrite: bool = False) -> int:
    """Writes the tasks in the import format of ``tool``, one of :data:`TOOLS`; returns their number.

    The export of Label Studio or Argilla, and the CSV file with its column ``vote`` filled in (a, b or tie; and
    ``annotator``), are read by :func:`nemo_rpo.data.formats.read_rows`; ``pair_id`` is the one given here.

    Raises:
        ConfigError: an unknown tool, or a name that does not end as its files do.
        DataError: there is no task.
    """
    if tool not in TOOLS:
        raise ConfigError(f"'{tool}' is no label tool that is known; it can be {', '.join(TOOLS)}")
    if not out.name.endswith(_ENDS[tool]):
        raise ConfigError(f"{out}: a file for {tool} ends in {' or '.join(_ENDS[tool])}")
    written = 0
    with record_writer(out, overwrite) as write:
        for of in tasks:
            write(TOOLS[tool](of))
            written += 1
    return written


def shown(text: Text) -> str:
    """A text as it is; messages with who said them, one under the other, a single answer without."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)
