"""What ``ranks_lora.py`` leaves, put together; and what transformers makes of the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


def whole(ran: Path, layout: str) -> dict[str, torch.Tensor]:
    """The gradient of every adapter, put together from the ranks' parts; each number of a rank that has it is equal."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(ran.glob(f"{layout}.gradients.*")):
        for place, data in load_file(path).items():
            key, layer, offset, shape = place.split("@")
            block = tuple(slice(o, o + n) for o, n in zip(map(int, offset.split(",")), data.shape, strict=True))
            one = found.setdefault(f"{key}@{layer}", torch.full([*map(int, shape.split(","))], torch.nan))
            assert one[block].isnan().all() or torch.equal(one[block], data), f"{place} differs between ranks"
            one[block] = data
    return found


def hugging_face(folder: Path) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="models are made with transformers: pip install 'nemo-rpo[hf]'"
    )
    path = folder / "model" if (folder / "model").is_dir() else folder
    return transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)


def logits_of(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 43, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(ids).logits
