"""A real server: ``transformers serve`` with a real, tiny model, started by the package."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="servers are asked with the openai package (extra 'loop')")
pytest.importorskip("fastapi", reason="transformers serve needs fastapi (transformers[serving])")
from paths import ROOT

from nemo_rpo.cli import main
from nemo_rpo.data.files.stage import read_table
from nemo_rpo.errors import ConfigError, ServerError
from nemo_rpo.sampling.canary import HuggingFaceReference, check_weights
from nemo_rpo.sampling.collecting import Prompt, asks_for, collect
from nemo_rpo.sampling.sampling_settings import SampleSettings
from nemo_rpo.sampling.server_sampler import ServerSampler
from nemo_rpo.serving.servers import Servers

COMMAND = f"{Path(sys.executable).parent}/transformers serve {{model}} --port {{port}}"
STARTS = ("Once upon a time", "The little dog", "Lily and Tom went", "One day, a bird", "Ben had a red ball")


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def weights(shared_data, tmp_path_factory) -> Path:
    """The story model with a chat template, which it does not come with."""
    folder = tmp_path_factory.mktemp("weights") / "hf"
    shutil.copytree(shared_data / "stories260k" / "hf", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def url(weights, tmp_path_factory):
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings = SampleSettings(command=COMMAND, start_s=120)
    with Servers(settings, "sample", tmp_path_factory.mktemp("server") / "log") as servers:
        servers.serve(str(weights))
        yield servers.first.url


def test_killed_and_started_again_it_samples_the_same(url, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in STARTS))
    config = tmp_path / "s.yaml"
    config.write_text("sample: {samples: 4, max_tokens: 40, temperature: 1.0, dialect: transformers, stop: ['.']}")

    def given(out):
        return ["sample", str(prompts), "--url", url, "--out", str(out), "--config", str(config)]

    assert main(given(tmp_path / "whole.parquet")) == 0
    assert "20 samples" in capsys.readouterr().out
    out, lines = tmp_path / "broken.parquet", tmp_path / "broken.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "nemo_rpo.cli", *given(out)], cwd=ROOT)
    while not lines.exists() or lines.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    left = threading.Thread(target=_write_on, args=(url,))  # what the killed run no longer waits for
    left.start()
    time.sleep(0.2)
    assert main(given(out)) == 0
    left.join()
    rows, _ = read_table(out)
    assert rows == read_table(tmp_path / "whole.parquet")[0]
    assert len({row["text"] for row in rows}) > 15 and {row["finish"] for row in rows} <= {"stop", "length"}


def _write_on(url):
    body = {"temperature": 1.0, "max_tokens": 300, "seed": 1}
    own = {"generation_config": json.dumps({"do_sample": True, "min_new_tokens": 300})}
    with Servers(SampleSettings(url=url, dialect="transformers"), "sample", Path(os.devnull)) as servers:
        server = servers.first
        server.client.completions.create(model=server.model, prompt=STARTS[0], extra_body=own, **body)


def test_without_its_dialect_it_ignores_the_temperature(url, tmp_path):
    settings = SampleSettings(url=url, dialect="openai", max_tokens=6, logprobs=False, concurrency=1)
    asks = asks_for([Prompt(text, text, {}) for text in STARTS[:2]], 4, "run", 0)
    with ServerSampler(settings, tmp_path / "log") as sampler:
        with pytest.raises(ConfigError, match="ignores the temperature"):
            collect(sampler, asks, tmp_path / "r.parquet", "x", 1.0)


def test_the_canary_knows_its_weights(url, weights, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = SampleSettings(url=url, dialect="transformers")
    other = AutoModelForCausalLM.from_pretrained(weights)
    other.lm_head.weight.data.mul_(-1)
    other.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(weights).save_pretrained(tmp_path)
    with Servers(settings, "sample", tmp_path / "log") as servers:
        check_weights(servers.first, weights, HuggingFaceReference(), settings)
        with pytest.raises(ServerError, match="does not serve"):
            check_weights(servers.first, tmp_path, HuggingFaceReference(), settings)


def test_a_chat_judge(url, weights, tmp_path, capsys):
    """What it says is transformers' greedy answer to the rendered prompt, read by a pattern that stories match. What
    the server does not know is said, not guessed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pairs = [{"pair_id": str(i), "prompt": STARTS[i], "response_a": "and ran.", "response_b": "ate."} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "j.jinja").write_text("{{ prompt }} {{ first }} {{ second }}")

    def judge(out: str, **block) -> int:
        block = {"name": "story", "kind": "chat", "url": url, "prompt": "j.jinja", "orders": "both", **block}
        block = {"words": {"first": "a", "second": "o", "tie": "#"}, "max_tokens": 12, "retries": 0, **block}
        (tmp_path / "judges.yaml").write_text(json.dumps({"judges": [block]}))
        given = ["judge", str(tmp_path / "p.jsonl"), "--judges", str(tmp_path / "judges.yaml")]
        return main([*given, "--out", str(tmp_path / out)])

    judge("parse", dialect="transformers", pattern="([ao])")
    rows, _ = read_table(tmp_path / "parse" / "verdicts.parquet")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(weights), AutoTokenizer.from_pretrained(weights)
    for row in rows:
        pair = pairs[int(row["pair"])]
        a, b = pair["response_a"], pair["response_b"]
        text = f"user: {pair['prompt']} {a} {b}\nassistant:"
        if row["shown_first"] == "b":
            text = f"user: {pair['prompt']} {b} {a}\nassistant:"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            said = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        said = tokenizer.decode(said, skip_special_tokens=True)
        assert row["raw"].strip() == said.strip()
        assert row["said"] == {"a": "first", "o": "second"}[[c for c in said.lower() if c in "ao"][-1]]
    assert len(rows) == 8
    capsys.readouterr()
    assert judge("choice", dialect="transformers", verdict="choice") == 2
    assert "transformers serve knows neither structured outputs nor log-probs" in capsys.readouterr().err
    assert judge("blind", dialect="openai", verdict="choice") == 2
    assert "no judge is left: story: 8 of 8 verdicts cannot be read (422" in capsys.readouterr().err
    assert judge("logprobs", dialect="openai", verdict="logprobs") == 2
    assert "no log-probs, which verdict: logprobs needs" in capsys.readouterr().err
