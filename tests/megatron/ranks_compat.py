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


def tensors_of(x: Any) -> list[torch.Tensor]:
    """Those of a ModelInput, in order."""
    found: list[torch.Tensor] = []
    x.map(lambda tensor: found.append(tensor) or tensor)
    return found


def transfer(run: Engine) -> bool:
    """Whether a micro-batch that travels in one piece arrives as it was, and tensors of every kind with it."""
    from nemo_rpo.megatron.batch.transfer import Parcel
    from nemo_rpo.megatron.step.forward import loss_columns, model_input, on_device

    elsewhere = torch.device("cuda", 0)  # a name for the CPU in this process, which the tensors' own is not
    kinds = [torch.tensor(7), torch.zeros(0, 3), torch.arange(6).view(2, 3).t(), torch.tensor([True, False, True])]
    kinds += [torch.randn(5, dtype=torch.float64), torch.randn(3).bfloat16(), torch.arange(8)[2:5]]
    parcel = Parcel(elsewhere)
    for tensor in kinds:
        parcel.add(tensor)
    sent = parcel.send()
    pairs = [(tensor, sent(tensor)) for tensor in kinds]
    for micro_batch in run.splits["train"].dataset.global_batch(0):
        x, columns = on_device(micro_batch, elsewhere)
        pairs += zip(tensors_of(model_input(micro_batch)), tensors_of(x), strict=True)
        pairs += [(column, columns.pop(key)) for key, column in loss_columns(micro_batch).items()]
        assert not columns and len(tensors_of(x)) >= 8
    return all(
        (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) and a.data_ptr() != b.data_ptr())
        or not a.numel()
        for a, b in pairs
    )


def swap(run: Engine) -> bool:
    """Whether a swap puts the kept values in and the others back, as often as it is asked, also past an error."""
    from nemo_rpo.megatron.weight_swap import WeightSwap

    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    first = [parameter.detach().clone() for parameter in parameters]
    kept = WeightSwap(parameters)
    well = True
    for _ in range(2):
        for parameter in parameters:
            parameter.data.add_(1)
        trained = [parameter.detach().clone() for parameter in parameters]
        try:
            with kept.kept_values():
                well &= all(map(torch.equal, parameters, first))
                raise KeyError
        except KeyError:
            well &= all(map(torch.equal, parameters, trained))
    return well


def main() -> None:
    """``argv``: the world's folder, an empty folder."""
    from nemo_rpo.megatron.compat.megatron_optimizer import step_if

    world, out = map(Path, sys.argv[1:])
    tight = "trainer.dpo.gradient_clip_val=0.01"  # clipped, so that clipping is compared too
    with engine([*places(world, out / "run"), tight]) as run:
        found = forward(run) | {"transfer": transfer(run), "swap": swap(run)}
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
