"""The recipes load for their number of GPUs, and what they say of memory and time is what the formulas give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from paths import ROOT

from nemo_rpo.cli import main as cli
from nemo_rpo.config.adapters.adapter_size import adapter_weights, layer_adapter_weights
from nemo_rpo.config.arithmetic.flops import forward_flops, layers_weights
from nemo_rpo.config.load import load_config
from nemo_rpo.config.validate import validate_config, validate_parallel
from nemo_rpo.planning.__main__ import main
from nemo_rpo.planning.checkpoints import written_bytes
from nemo_rpo.planning.hardware import Hardware
from nemo_rpo.planning.memory import peak_memory
from nemo_rpo.planning.models import MODELS, total_weights
from nemo_rpo.planning.step_time import step_seconds

CONF = ROOT / "conf"
RECIPES = sorted(path for data in ("ultrafeedback", "multipref", "lora") for path in CONF.glob(f"*_{data}.yaml"))
COMMAND = re.compile(r"^# python -m nemo_rpo\.planning (\S+) --model (\S+)$", re.MULTILINE)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_for_its_ranks(path: Path) -> None:
    given = ["pretrained_checkpoint.restore_from_path=MODEL", "model.data.data_prefix.train=train.jsonl"]
    cfg = load_config(str(path), given, notify=lambda text: pytest.fail(f"{path.name}: {text}"))
    model, trainer = cfg.model, cfg.trainer
    ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    validate_config(cfg)
    validate_parallel(cfg, trainer.num_nodes * trainer.devices if trainer.devices else ranks)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_the_formulas_give(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a mismatch, put what the command in its head prints there."""
    text = path.read_text()
    name, model = COMMAND.search(text).groups()
    assert name == path.stem
    assert main([str(path), "--model", model]) == 0
    printed = "".join(f"#   {line}\n" for line in capsys.readouterr().out.splitlines())
    assert printed in text, printed


def test_the_recipes_are_those_of_the_paper_and_its_successors() -> None:
    for name in MODELS:
        stem = name.replace("-", "_")
        one, many = (load_config(str(CONF / f"{stem}_{data}.yaml")) for data in ("ultrafeedback", "multipref"))
        assert {cfg.model.global_batch_size for cfg in (one, many)} == {128}
        assert one.model.dpo.ref_policy_kl_penalty == many.model.dpo.ref_policy_kl_penalty == 0.01
        assert one.model.optim.lr == many.model.optim.lr == (5e-7 if name == "mistral-7b" else 3e-7)
        assert (one.model.rpo.estimator, one.model.rpo.eta_init, one.model.rpo.alpha) == ("ema", 0.9, 0.1)
        assert (one.model.data.layout, many.model.data.layout) == ("auto", "multipref")
        assert many.trainer.num_nodes == one.trainer.num_nodes


def test_adapters_by_hand() -> None:
    """Rank 16 beside every layer of Llama-3 8B, as a whole and by matrix: 4096 in and out of each, as peft counts."""
    whole, matrices = (
        load_config(
            str(CONF / "llama3_8b_ultrafeedback.yaml"),
            ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=16", *more],
        )
        for more in ([], ["model.peft.lora_tuning.target_modules=[all-linear]"])
    )
    h, kv, f, r = 4096, 1024, 14336, 16
    out = (h + 2 * kv) + h + 2 * f + h
    assert layer_adapter_weights(MODELS["llama3-8b"], whole.model.peft, 0) == r * (h + h + h + f + out)
    assert adapter_weights(MODELS["llama3-8b"], matrices.model.peft) == 32 * r * (3 * h + h + 2 * h + f + out)
    full, adapted = (
        peak_memory(load_config(str(CONF / "llama3_8b_ultrafeedback.yaml"), over), MODELS["llama3-8b"], 8)
        for over in ([], ["model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=16"])
    )
    split = r * (h + (h + 2 * kv) / 2 + h / 2 + h + h + f + f / 2 + h)
    assert adapted.gradients == 4 * 32 * split and adapted.weights == full.weights + 2 * 32 * split
    assert adapted.reference == 0 and adapted.activations == full.activations + 2 * 2048 * 32 * 2 * 4 * r
    seconds = [
        step_seconds(cfg, MODELS["llama3-8b"], 8, 2048, Hardware())
        for cfg in (whole, load_config(str(CONF / "llama3_8b_ultrafeedback.yaml")))
    ]
    files = written_bytes(whole, MODELS["llama3-8b"], 8)
    assert files.checkpoint == 14 * 32 * r * (h + h + h + f + out) and files.host == files.share == files.checkpoint / 8
    assert 0.7 < seconds[0] / seconds[1] < 0.8


@pytest.mark.parametrize(("name", "kind"), [("llama3-8b", "Llama"), ("mistral-7b", "Mistral"), ("qwen3-32b", "Qwen3")])
def test_weights_are_those_of_transformers(name: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'nemo-rpo[hf]'")
    model = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=model.vocab_size, hidden_size=model.hidden_size, intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_attention_heads, head_dim=model.kv_channels,
        num_key_value_heads=model.num_query_groups, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        real = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert sum(parameter.numel() for parameter in real.parameters()) == total_weights(model)


@pytest.mark.parametrize(("name", "kind"), [("qwen3-30b-a3b", "Qwen3Moe"), ("mixtral-8x7b", "Mixtral")])
def test_weights_and_active_weights_of_experts(name: str, kind: str) -> None:
    """All are transformers'; the active ones, those that the names of the models speak of."""
    transformers = pytest.importorskip("transformers", reason="pip install 'nemo-rpo[hf]'")
    model = MODELS[name]
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768} if "qwen" in name else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=model.vocab_size, hidden_size=model.hidden_size, intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_attention_heads, head_dim=model.kv_channels,
        num_key_value_heads=model.num_query_groups, tie_word_embeddings=False, **experts,
    )  # fmt: skip
    with torch.device("meta"):
        real = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert sum(parameter.numel() for parameter in real.parameters()) == total_weights(model)
    tables = 2 * model.vocab_size * model.hidden_size
    active = (layers_weights(model, active=True) + tables) / 1e9
    assert active == pytest.approx({"qwen3-30b-a3b": 3.35, "mixtral-8x7b": 12.88}[name], abs=0.01)


def test_memory_of_experts_by_hand() -> None:
    """Qwen3 30B-A3B on 16 GPUs, the figures of a pocket calculator: TP 2, whole experts on 8 ranks each."""
    cfg = load_config(str(CONF / "qwen3_30b_a3b_ultrafeedback.yaml"))
    memory = peak_memory(cfg, MODELS["qwen3-30b-a3b"], 16)
    attention = 2048 * (4096 + 2 * 512) + 4096 * 2048
    dense = 48 * (attention / 2 + 128 * 2048 + 2 * 2048 + 2 * 128) + 151936 * 2048 + 2048
    experts = 48 * 128 / 8 * 3 * 2048 * 768
    assert memory.weights == 2 * (dense + experts) and memory.gradients == 4 * (dense + experts)
    assert memory.optimizer == 12 * (dense / 8 + experts / 2)
    token = (8 * 2048 + 4 * (32 + 4) * 128 + 4 * 32 + 8 * (4 * 2048 + 6 * 768) + 8 * 128) / 2
    assert memory.activations == 2 * 2048 * 48 * token
    files, all_weights = written_bytes(cfg, MODELS["qwen3-30b-a3b"], 16), total_weights(MODELS["qwen3-30b-a3b"])
    assert (files.checkpoint, files.export) == (14 * all_weights, 2 * all_weights)
    assert files.host == 4 * (dense + experts) + 14 * all_weights / 16  # the swapped reference, and the GPU's share
    cfg.model.rpo.first_policy, cfg.model.rpo.kl_to_start = "first", True
    assert written_bytes(cfg, MODELS["qwen3-30b-a3b"], 16).host == files.host + 4 * (dense + experts)
    cfg.model.rpo.reference = "resident"
    assert written_bytes(cfg, MODELS["qwen3-30b-a3b"], 16).host == files.host  # π₀ waits in host memory all the same


def test_flops_are_those_that_torch_counts() -> None:
    """PyTorch counts all keys of the attention; half of them are masked, and a causal kernel leaves them out."""
    transformers = pytest.importorskip("transformers", reason="pip install 'nemo-rpo[hf]'")
    from torch.utils.flop_counter import FlopCounterMode

    model, length = MODELS["llama3-8b"], 2048
    config = transformers.LlamaConfig(
        vocab_size=model.vocab_size, hidden_size=model.hidden_size, intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        transformers.LlamaForCausalLM(config)(input_ids=torch.zeros(1, length, dtype=torch.long))
    layers, head = forward_flops(model, length)
    masked = 2 * model.num_attention_heads * model.kv_channels * length  # a token and layer
    assert counter.get_total_flops() / length == pytest.approx((layers / 32 + masked) * 2 + head, rel=1e-3)


def test_memory_by_hand() -> None:
    """Llama-3 8B at TP 2 on eight GPUs, the figures of a pocket calculator."""
    cfg = load_config(str(CONF / "llama3_8b_ultrafeedback.yaml"))
    memory = peak_memory(cfg, MODELS["llama3-8b"], 8)
    matrices = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    weights = 32 * (matrices / 2 + 2 * 4096) + 128256 * 4096 + 4096
    assert memory.weights == memory.reference == 2 * weights and memory.gradients == 4 * weights
    assert memory.optimizer == 12 * weights / 4
    token = (8 * 4096 + 4 * (32 + 8) * 128 + 4 * 32 + 6 * 14336) / 2
    assert memory.activations == 2 * 2048 * 32 * token


def test_what_saves_memory_and_what_it_costs() -> None:
    def of(*overrides: str) -> tuple[float, float, float]:
        cfg = load_config(str(CONF / "llama3_8b_ultrafeedback.yaml"), overrides)
        memory = peak_memory(cfg, MODELS["llama3-8b"], 8)
        return memory.reference, memory.activations, step_seconds(cfg, MODELS["llama3-8b"], 8, 2048, Hardware())

    resident = of()
    swapped, cached = of("model.rpo.reference=swapped"), of("model.rpo.reference=cached")
    assert swapped[0] == cached[0] == 0 < resident[0]
    assert cached[2] < resident[2] < swapped[2]
    recomputed = of(
        "model.activations_checkpoint_granularity=full",
        "model.activations_checkpoint_method=uniform",
        "model.activations_checkpoint_num_layers=1",
    )
    assert recomputed[1] < 0.1 * resident[1] and resident[2] < recomputed[2] < 1.3 * resident[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "llama4"], "--model llama4 is neither a directory nor one of llama3-8b, llama3-70b"),
        (
            ["--model", "llama3-70b"],
            "the layout fits on none of 8, 16, 32, 64, 128, 256 H100 80 GB: raise model.tensor",
        ),
        (["--model", "llama3-8b", "model.tensor_model_parallel_size=16"], "model.tensor_model_parallel_size=16 does"),
        (["--model", "llama3-8b", "model.optm.lr=1"], "unknown key model.optm.lr"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONF / "llama3_8b_ultrafeedback.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_plan_gives_hours_for_these_pairs_and_names_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Hours are steps by seconds of a step; half the GPUs take twice as long; no file is read."""
    plan = ["plan", "-cn", str(CONF / "llama3_8b_ultrafeedback.yaml"), "--model", "llama3-8b", "--length", "1000"]
    assert cli([*plan, "--pairs", "12800", "--gpus", "1", "2", "4", "8"]) == 0
    out = capsys.readouterr().out
    assert "12,800 pairs, 100 steps of 128, 1000 tokens a text, on H100 80 GB at 40% of 989 TFLOP/s" in out
    assert "  1 GPU: 1 ranks are no multiple of model.tensor_model_parallel_size=2" in out
    assert "  2 GPUs: 90 GB do not fit into 72 of H100 80 GB" in out
    rows = {
        row[0]: list(map(float, row[1:])) for line in out.splitlines() if (row := line.split())[:1] in (["4"], ["8"])
    }
    cfg = load_config(str(CONF / "llama3_8b_ultrafeedback.yaml"))
    seconds = step_seconds(cfg, MODELS["llama3-8b"], 8, 1000, Hardware())
    assert rows["8"][1] == pytest.approx(seconds, abs=0.06) and rows["8"][2] == pytest.approx(
        100 * seconds / 3600, abs=0.006
    )
    assert rows["4"][2] == pytest.approx(2 * rows["8"][2], abs=0.02)
    files = (
        "A checkpoint is 112 GB, 28.1 of them from a GPU on 4, which needs 28.1 GB of host memory; an export gathers 16"
    )
    assert files in out
    assert cli([*plan, "--pairs", "12800", "--gpus", "8", "--gpu", "H200"]) == 0
    assert "H200 141 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pairs", "12800", "--gpus", "1"], "none of these fits: raise model.tensor_model_parallel_size"),
        (["--pairs", "12800", "--gpu", "V100"], "--gpu V100: known are A100"),
        (["--pairs", "12800", "--utilisation", "40"], "--utilisation is a share of the peak"),
        (["--pairs", "100"], "100 pairs are no global batch of 128"),
        (["--pairs", "12800", "--length", "9000"], "--length from 1 to 2048"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["plan", "-cn", str(CONF / "llama3_8b_ultrafeedback.yaml"), "--model", "llama3-8b", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
