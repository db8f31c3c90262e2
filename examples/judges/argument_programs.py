"""Two programs that judge arguments: the longer one, and the one that argues more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_REASONS = re.compile(r"\b(because|since|therefore|thus|hence|so|if|but|however|although|example|why)\b", re.IGNORECASE)


def words(prompt: str, response: str, fields: Mapping[str, Any]) -> float:
    """How many words it has."""
    return len(response.split())


def reasons(prompt: str, response: str, fields: Mapping[str, Any]) -> float:
    """How many words of it join a reason to a claim."""
    return len(_REASONS.findall(response))
