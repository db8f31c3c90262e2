"""The rank of ``test_compat.py``: what each reach into Megatron-Core does, beside what Megatron-Core does by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine import Engine, engine, places


def bare(run: Engine) -> Any:
    """The GPTModel under its wrappers."""
    model = run.model.model[0]
    while hasattr(model, "module"):
        model = model.module
    return model


def forward(run: Engine) -> dict[str, Any]:
    """``decoder_output`` against GPTModel's own forward, and what ``become``, ``set_module``, ``set_part`` and
    ``use_adam`` have put in.
    """
    from megatron.core.models.gpt import GPTModel

    model = bare(run)
    ids = torch.arange(22).view(2, 11) % model.vocab_size
    positions = torch.arange(11).expand(2, -1)
    with torch.no_grad():
        ours, theirs = model(ids, positions), GPTModel.forward(model, ids, positions, None)
    layer = model.decoder.layers[0]
    attention, mlp = layer.self_attention, layer.mlp
    parts = (model.output_layer, layer, attention, attention.core_attention, layer.input_layernorm)
    parts += (layer.pre_mlp_layernorm, mlp.activation_func, run.model.optimizer.chained_optimizers[0].optimizer)
    return {
        "forward": [float((ours - theirs).abs().max()), float(theirs.std())],
        "parts": [type(part).__name__ for part in parts],
        "tied": model.shared_embedding_or_output_weight() is model.embedding.word_embeddings.weight,
    }


def step(run: Engine, finish: Callable[[Engine], None]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """One step that ends in ``finish``: the weights after it, and the gradient of the tied embeddings before it."""
    run.model.prepare_for_training_step()
    run.model.get_loss_and_metrics(run.batch(0), forward_only=False)
    gradient = bare(run).shared_embedding_or_output_weight().main_grad.clone()
    run.model.scheduler.step(1)
    finish(run)
    return [parameter.detach().clone() for parameter in bare(run).parameters()], gradient


def main() -> None:
    """``argv``: the world's folder, an empty folder."""
    from nemo_rpo.megatron.compat.megatron_optimizer import step_if

    world, out = map(Path, sys.argv[1:])
    tight = "trainer.dpo.gradient_clip_val=0.01"  # clipped, so that clipping is compared too
    with engine([*places(world, out / "run"), tight]) as run:
        found = forward(run)
        before = [parameter.detach().clone() for parameter in bare(run).parameters()]
        refused, _ = step_if(run.model.optimizer, 0.01, lambda norm: False)
        found["refused moves nothing"] = not refused and all(map(torch.equal, bare(run).parameters(), before))
        ours, chunked = step(run, lambda run: step_if(run.model.optimizer, 0.01, lambda norm: norm > 0.01))
    with engine([*places(world, out / "run"), tight, "model.rpo.logprob_head=logits"]) as run:
        _, through_logits = step(run, lambda run: run.model.optimizer.step())
    with engine([*places(world, out / "run"), tight]) as run:
        theirs, _ = step(run, lambda run: run.model.optimizer.step())
    found["steps are equal"] = all(map(torch.equal, ours, theirs))
    found["a step moves"] = not any(map(torch.equal, ours, before))
    found["main_grad"] = [float((chunked - through_logits).abs().max()), float(through_logits.abs().max())]
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
