"""What each rank of ``test_huggingface.py`` does: import, forward, export, import again."""

# ruff: noqa: E402 (what makes Megatron-Core run on a CPU comes before its import)
from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from nemo_rpo.megatron import cpu

cpu.install()

import safetensors.torch
import torch
import torch.distributed as dist
from hf_models import CASES, NEW_TOKENS, PROMPTS, SEEDS, SMALL_FILES, STOP_IDS, WRITERS
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from nemo_rpo.config.architecture import GPTArchitecture
from nemo_rpo.config.schema import RunConfig
from nemo_rpo.errors import CheckpointError, ConfigError
from nemo_rpo.megatron import parallel
from nemo_rpo.megatron.checkpoint.huggingface.config import architecture_from_hf, read_hf_config
from nemo_rpo.megatron.checkpoint.huggingface.exporter import export_hf
from nemo_rpo.megatron.checkpoint.huggingface.importer import load_hf_weights
from nemo_rpo.megatron.generate.cached import generate
from nemo_rpo.megatron.generate.drawing import Drawing
from nemo_rpo.megatron.generate.without_cache import greedy, pipeline_forward
from nemo_rpo.megatron.network.build import build_model_chunks

DRAWING = Drawing(temperature=0.8, top_p=0.9)


def run_config(layout: dict[str, int]) -> RunConfig:
    cfg = RunConfig()
    cfg.trainer.accelerator = "cpu"
    for name, value in layout.items():
        setattr(cfg.model, name, value)
    return cfg


def fresh_model(cfg: RunConfig, architecture: GPTArchitecture, seed: int) -> list[torch.nn.Module]:
    torch.manual_seed(seed)
    return build_model_chunks(architecture, cfg)


def save_logits(chunks: list[torch.nn.Module], expected: Path, target: Path) -> None:
    token_ids = safetensors.torch.load_file(expected)["token_ids"]
    whole = pipeline_forward(
        chunks, token_ids.chunk(2), lambda logits, _: gather_from_tensor_model_parallel_region(logits)
    )
    first_replica = parallel.data_parallel_rank() == parallel_state.get_tensor_model_parallel_rank() == 0
    if parallel.is_last_stage() and first_replica:
        safetensors.torch.save_file({"logits": torch.cat(whole).float()}, target)


def parameters(chunks: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{i}.{name}": p.detach() for i, chunk in enumerate(chunks) for name, p in chunk.named_parameters()}


def round_trip(name: str, cfg: RunConfig, models: Path, out: Path) -> None:
    case, source, exported = CASES[name], models / name, out / name
    # Experts need sequence parallelism under tensor parallelism, and dense models run without it here.
    cfg.model.sequence_parallel = case.has_experts and cfg.model.tensor_model_parallel_size > 1
    cfg.trainer.precision, cfg.model.make_vocab_size_divisible_by = case.precision, case.vocabulary_multiple
    architecture = architecture_from_hf(source)
    chunks = fresh_model(cfg, architecture, seed=1)
    load_hf_weights(chunks, source, architecture)
    save_logits(chunks, source.with_suffix(".expected"), out / f"{name}.logits")
    sizes = SMALL_FILES if case.files == "many" else "1GB"
    export_hf(chunks, architecture, exported, None, read_hf_config(source), case.dtype, max_shard_size=sizes)
    export_hf(chunks, architecture, out / f"{name}_without_source")
    dist.barrier()
    assert architecture_from_hf(exported) == architecture
    cfg.model.sequence_parallel = False  # as a model for generation has it; its weights are the same
    again = fresh_model(cfg, architecture, seed=2)
    load_hf_weights(again, exported, architecture)
    for (key, one), other in zip(parameters(chunks).items(), parameters(again).values(), strict=True):
        assert torch.equal(one, other), key
    if case.has_experts:
        prompts, size = [[1], [1, 7, 3]], architecture.vocab_size
        cached = dict(generate(again, prompts, 5, [], size))
        found = [greedy(chunks, prompts, 5, None, size), [cached[i].ids for i in range(2)]]
        (out / f"{name}.{dist.get_rank()}.written").write_text(json.dumps(found))


def generate_texts(name: str, cfg: RunConfig, models: Path, out: Path) -> None:
    """The likeliest texts, drawn ones, and drawn ones in other batches in another order; of every rank."""
    architecture = architecture_from_hf(models / name)
    chunks = fresh_model(cfg, architecture, seed=3)
    load_hf_weights(chunks, models / name, architecture)
    found: dict[str, list] = {}
    ways = {"greedy": (Drawing(), 32), "drawn": (DRAWING, 32), "drawn in pieces": (DRAWING, 2)}
    for way, (how, rows) in ways.items():
        order = list(range(len(PROMPTS)))[:: -1 if rows == 2 else 1]
        texts = generate(
            chunks,
            [PROMPTS[i] for i in order],
            NEW_TOKENS,
            [] if way == "greedy" else STOP_IDS,
            architecture.vocab_size,
            how,
            [SEEDS[i] for i in order],
            rows,
        )
        by_prompt = {order[k]: text for k, text in texts}
        found[way] = [dataclasses.asdict(by_prompt[i]) for i in range(len(PROMPTS))]
    (out / f"{name}.texts.{dist.get_rank()}.json").write_text(json.dumps(found))


def refusals(cfg: RunConfig, models: Path, out: Path) -> None:
    """Every rank gets the same error, and nothing half-written stays."""
    cfg.trainer.precision = "32"
    architecture = architecture_from_hf(models / "llama")
    chunks = fresh_model(cfg, architecture, seed=1)
    messages = [
        message_of(CheckpointError, lambda: load_hf_weights(chunks, models / "damaged", architecture)),
        message_of(
            ConfigError, lambda: load_hf_weights(chunks, models / "qwen2", architecture_from_hf(models / "qwen2"))
        ),
    ]
    if parallel.data_parallel_rank() == 0:
        messages.append(message_of(CheckpointError, lambda: export_hf(chunks, architecture, models / "llama")))
        wrong = read_hf_config(models / "mistral")
        messages.append(
            message_of(ConfigError, lambda: export_hf(chunks, architecture, out / "wrong", source_config=wrong))
        )
        working, safetensors.torch.save_file = safetensors.torch.save_file, disk_is_full
        messages.append(message_of(CheckpointError, lambda: export_hf(chunks, architecture, out / "full")))
        safetensors.torch.save_file = working
    dist.barrier()
    (out / f"refusals.{dist.get_rank()}.json").write_text(json.dumps(messages))


def disk_is_full(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def message_of(kind: type[Exception], step: object) -> str:
    try:
        step()
    except kind as exc:
        return str(exc)
    raise AssertionError(f"no {kind.__name__}")


def tell_a_story(cfg: RunConfig, folder: Path, out: Path) -> None:
    cfg.trainer.precision, cfg.model.make_vocab_size_divisible_by = "32", 128
    architecture = architecture_from_hf(folder)
    vocab = architecture.vocab_size
    chunks = fresh_model(cfg, architecture, seed=1)
    load_hf_weights(chunks, folder, architecture)
    [story] = greedy(chunks, [[1]], 256, None, vocab)
    export_hf(chunks, architecture, out / "stories", folder, read_hf_config(folder))
    cfg.model.sequence_parallel = True
    chunks = fresh_model(cfg, architecture, seed=1)
    load_hf_weights(chunks, folder, architecture)
    prompts = [[1], [1, *story[:7]], [1, *story[:2]]]
    found = {"story": story, "batch": greedy(chunks, prompts, 12, story[9], vocab)}
    (out / f"generated.{dist.get_rank()}.json").write_text(json.dumps(found))


def main() -> None:
    """``argv``: a JSON object with the layouts to go through and the models of each, a folder for each, and the models'
    folders.
    """
    task = json.loads(sys.argv[1])
    for out, (layout, cases) in task["layouts"].items():
        cfg, out = run_config(layout), Path(out)
        parallel.initialize(cfg)
        for name in cases:
            round_trip(name, cfg, Path(task["models"]), out)
            if name in WRITERS:
                generate_texts(name, cfg, Path(task["models"]), out)
        cfg.model.sequence_parallel = False
        if "llama" in cases:
            refusals(cfg, Path(task["models"]), out)
        if task["stories"] and "llama" in cases:
            tell_a_story(cfg, Path(task["stories"]), out)
        parallel.finalize()


if __name__ == "__main__":
    main()
