"""NeMo's own ``MegatronGPTModel``, tensor parallel over all ranks: writes each form, or restores what is exported.

``argv``: ``write`` and the world's folder; or ``restore``, and the files to restore. Beside each file are left the
log-probs of :func:`nemo_forms.tokens`.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from integrations.nemo_aligner import shim

shim.install()

import torch  # noqa: E402
from omegaconf import open_dict  # noqa: E402

from integrations.nemo_aligner import nemo_forms, ranks_nemo, world  # noqa: E402

RANKS = int(os.environ["WORLD_SIZE"])


def write(folder: Path) -> None:
    for name, (stored, shape) in nemo_forms.FORMS.items():
        settings = {**shape, "dist_ckpt_format": "torch_dist" if stored == "per_rank" else stored}
        model = ranks_nemo.new_model(folder, settings, RANKS)
        # Without a sharded state dict, as of its FSDP models, NeMo saves a file a rank.
        per_rank = mock.patch.object(type(model), "sharded_state_dict", lambda self: None)
        with per_rank if stored == "per_rank" else nullcontext():
            model.save_to(str(folder / f"{name}.nemo"))
        save_logprobs(model, folder / f"{name}.nemo")


def restore(file: Path) -> None:
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.nlp_overrides import NLPSaveRestoreConnector

    trainer = ranks_nemo.new_trainer(RANKS)
    cfg = MegatronGPTModel.restore_from(str(file), trainer=trainer, return_config=True)
    with open_dict(cfg):  # what a recipe overrides of a checkpoint's settings: the layout, and that there is no GPU
        cfg.update(world.on_cpu(RANKS))
        cfg.megatron_amp_O2, cfg.optim = False, {"name": "adamw", "lr": world.LR}
    connector = NLPSaveRestoreConnector()
    model = MegatronGPTModel.restore_from(
        str(file), trainer=trainer, override_config_path=cfg, save_restore_connector=connector
    )
    save_logprobs(model, file)


@torch.no_grad()
def save_logprobs(model: Any, file: Path) -> None:
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    (chunk,) = model.get_model_module_list()
    token_ids = nemo_forms.tokens(world.VOCABULARY)
    positions = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    later = torch.ones(1, 1, *[token_ids.shape[1]] * 2).triu(1).bool()
    logits = gather_from_tensor_model_parallel_region(chunk(token_ids, positions, later))
    if os.environ["RANK"] == "0":
        found = nemo_forms.token_logprobs(logits, token_ids)
        torch.save(found, nemo_forms.expected(file.parent, file.stem))


if __name__ == "__main__":  # checkpoint writers start processes that import this file
    if sys.argv[1] == "write":
        shim.complete_nemo()
        write(Path(sys.argv[2]))
    else:
        shim.complete_nemo()
        for exported in sys.argv[2:]:
            restore(Path(exported))
