"""Commands of this package that need the engine, in a process of their own: it starts ranks, and a judge has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.stage import read_table
from nemo_rpo.errors import ConfigError

_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def engine_table(
    command: Sequence[str], rows: Sequence[Mapping[str, Any]], options: Sequence[str], log: Path, where: str
) -> list[dict[str, Any]]:
    """The rows of the Parquet file that ``nemo-rpo`` makes of ``rows``.

    Args:
        command: words, in which ``{data}`` and ``{out}`` stand for the two files.
        options: settings and options of the user's, behind it.
        log: file that its output is appended to.
        where: the setting that a failure is blamed on.

    Raises:
        ConfigError: it failed; with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data.jsonl"), Path(folder, "out.parquet")
        with data.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        named = {"{data}": str(data), "{out}": str(out)}
        words = [sys.executable, "-m", "nemo_rpo.cli", *(named.get(word, word) for word in command), *options]
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
        with log.open("ab") as said:
            status = subprocess.run(words, stdout=said, stderr=said, env=environment).returncode
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ConfigError(
                f"{where}: it cannot judge ({lines[-1] if lines else 'without a word'}); its log is {log}"
            )
        return read_table(out)[0]
