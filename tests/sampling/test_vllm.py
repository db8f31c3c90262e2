"""vLLM on a CPU (``make test-vllm``, nightly): sampling, verdicts, and weights that it reloads by halves."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
import torch

from nemo_rpo.cli import main
from nemo_rpo.data.files.stage import read_table
from nemo_rpo.errors import ServerError
from nemo_rpo.sampling.canary import HuggingFaceReference
from nemo_rpo.sampling.sampling_settings import SampleSettings
from nemo_rpo.sampling.server_sampler import ServerSampler
from nemo_rpo.serving.servers import Servers

pytestmark = pytest.mark.nightly
COMMAND = (
    f"{sys.executable} -m vllm.entrypoints.openai.api_server --model {{model}} --port {{port}} --enforce-eager "
    "--dtype float32 --max-model-len 256 --max-num-seqs 16"
)
RELOAD = (
    "import urllib.request as u; u.urlopen(u.Request('{url}/collective_rpc', b'{{\"method\": \"reload_weights\"}}', "
    "{{'Content-Type': 'application/json'}})).read()"
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def write_weights(folder: Path, seed: int) -> None:
    """A random model of 60k weights whose head is its embedding; vLLM knows heads of 32 numbers or more."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = LlamaConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def weights(shared_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "hf"
    shutil.copytree(shared_data / "stories260k" / "hf", folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    write_weights(folder, 0)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def url(weights, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")  # for /collective_rpc
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        settings = SampleSettings(command=COMMAND, start_s=600)
        with Servers(settings, "sample", tmp_path_factory.mktemp("server") / "log") as servers:
            servers.serve(str(weights))
            yield servers.first.url


def test_samples_repeat_by_their_seeds_and_have_log_probs(url, weights, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Once upon a time", "The dog")))
    found = []
    for name in ("one", "two"):
        given = ["sample", str(prompts), "--url", url, "--policy", str(weights), "--max-tokens", "12"]
        assert main([*given, "--temperature", "1", "--out", str(tmp_path / f"{name}.parquet")]) == 0
        found.append(read_table(tmp_path / f"{name}.parquet")[0])
    assert [row["text"] for row in found[0]] == [row["text"] for row in found[1]]
    assert len({row["text"] for row in found[0]}) == 8 and all(row["logprob"] < 0 for row in found[0])


def test_a_judge_by_choice_and_by_log_probs(url, weights, tmp_path):
    """The words alone are allowed; and P(A)/(P(A) + P(B)) is that of the weights, where they are likely at all."""
    (tmp_path / "j.jinja").write_text("{{ prompt }} {{ first }} {{ second }}")
    pairs = [{"pair_id": str(i), "prompt": f"q{i}", "response_a": "yes", "response_b": "no"} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for verdict in ("choice", "logprobs"):
        block = {"name": "v", "kind": "chat", "url": url, "prompt": "j.jinja", "verdict": verdict, "max_tokens": 4}
        (tmp_path / "judges.yaml").write_text(json.dumps({"judges": [block], "unparsed": 1.0}))
        out = tmp_path / verdict
        main(["judge", str(tmp_path / "p.jsonl"), "--judges", str(tmp_path / "judges.yaml"), "--out", str(out)])
        rows, _ = read_table(out / "verdicts.parquet")
        assert len(rows) == 4 and not any(row["error"] for row in rows)
        if verdict == "choice":
            assert {row["raw"].strip() for row in rows} <= {"A", "B", "tie"} and all(row["said"] for row in rows)


def test_the_canary_hears_a_reload_that_left_the_old_head(url, weights, tmp_path):
    """New weights in the folder, reloaded in place: with tied embeddings the head stays the old one."""
    reload = shlex.join([sys.executable, "-c", RELOAD.format(url=url.removesuffix("/v1"))])
    settings = SampleSettings(url=url, reload=reload, canary=1e-2)
    with ServerSampler(settings, tmp_path / "log", HuggingFaceReference()) as sampler:
        sampler.use(weights)  # the same weights again: all is well
        write_weights(weights, 1)
        with pytest.raises(ServerError, match=r"does not serve .* nats a token apart"):
            sampler.use(weights)
