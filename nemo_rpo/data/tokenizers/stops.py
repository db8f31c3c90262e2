"""Where generation stops, as the folder of a model says it."""

from __future__ import annotations

import json
from pathlib import Path


def read_stop_ids(folder: str | Path) -> frozenset[int]:
    """``eos_token_id`` of ``generation_config.json``; none where there is no such file, or no id in it."""
    try:
        content = json.loads((Path(folder) / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    found = content.get("eos_token_id") if isinstance(content, dict) else None
    listed = found if isinstance(found, list) else [found]
    return frozenset(i for i in listed if isinstance(i, int) and not isinstance(i, bool))
