"""The package's engine, on as many ranks as started: imports each form, and exports it with its weights changed.

``argv``: the folder of the files, the folder to export to, and the parallel axis that the ranks are. Left there are
the log-probs before (``<name>.imported``) and after the change.
"""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import os
import sys
from pathlib import Path

from nemo_rpo.megatron import cpu

cpu.install()

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from integrations.nemo_aligner import nemo_forms
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.checkpoint.nemo.config import architecture_from_nemo
from nemo_rpo.megatron.checkpoint.nemo.exporter import export_nemo
from nemo_rpo.megatron.checkpoint.nemo.importer import load_nemo_weights
from nemo_rpo.megatron.generate.without_cache import pipeline_forward
from nemo_rpo.megatron.network.build import build_model_chunks


@torch.no_grad()
def main() -> None:
    folder, out, axis = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    cfg = RunConfig()
    cfg.trainer.accelerator, cfg.trainer.precision = "cpu", "32"
    setattr(cfg.model, f"{axis}_model_parallel_size", int(os.environ["WORLD_SIZE"]))
    parallel.initialize(cfg)
    for name in nemo_forms.FORMS:
        source = folder / f"{name}.nemo"
        architecture = architecture_from_nemo(source)
        chunks = build_model_chunks(architecture, cfg)
        load_nemo_weights(chunks, source, architecture)
        save_logprobs(chunks, architecture.vocab_size, out, f"{name}.imported")
        for chunk in chunks:
            for key, weight in chunk.named_parameters():
                weight.copy_(nemo_forms.change(key, weight))
        save_logprobs(chunks, architecture.vocab_size, out, f"{name}.changed")
        export_nemo(chunks, architecture, out / f"{name}.nemo", source=source)
        dist.barrier()
    parallel.finalize()


def save_logprobs(chunks: list[torch.nn.Module], vocabulary: int, out: Path, name: str) -> None:
    token_ids = nemo_forms.tokens(vocabulary)
    (logits,) = pipeline_forward(
        chunks, [token_ids], lambda logits, _: gather_from_tensor_model_parallel_region(logits)
    ) or [None]
    if parallel.is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        found = nemo_forms.token_logprobs(logits[..., :vocabulary], token_ids)
        torch.save(found, nemo_forms.expected(out, name))


if __name__ == "__main__":
    main()
