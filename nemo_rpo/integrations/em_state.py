"""Taking up a run whose checkpoint knows its annotators: their order is kept, newcomers start as all others did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemo_rpo.data.annotators import AnnotatorTable
from nemo_rpo.em import AnnotatorReliability
from nemo_rpo.errors import DataError


def continued(saved: AnnotatorTable, data: AnnotatorTable, allow_new: bool, block: str) -> AnnotatorTable:
    """The checkpoint's table, continued with the annotators of the data that it lacks.

    Raises:
        DataError: there is one, and ``allow_new_annotators`` of the configuration's ``block`` is off.
    """
    try:
        return saved.extended(data, allow_new=allow_new)
    except DataError as exc:
        raise DataError(str(exc).replace("model.data.", f"{block}.")) from exc


def with_newcomers(state: dict[str, Any], em: AnnotatorReliability) -> dict[str, Any]:
    """A saved ``state`` of fewer annotators, the rest as they are in the fresh ``em``."""
    fresh = em.state_dict()
    return {
        key: torch.cat((value, fresh[key][len(value) :].to(value))) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
