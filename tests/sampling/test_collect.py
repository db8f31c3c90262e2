"""Samples are asked for once each, whatever is killed when; and they are samples."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("openai", reason="servers are asked with the openai package (extra 'loop')")
from fake_server import FakeServer, by_seed, refused, said

from nemo_rpo.cli import main
from nemo_rpo.data.files.stage import Stage, read_table
from nemo_rpo.errors import ConfigError
from nemo_rpo.sampling.asks import seed_of
from nemo_rpo.sampling.canary import TEXTS, check_weights
from nemo_rpo.sampling.collecting import Prompt, asks_for, collect, read_responses
from nemo_rpo.sampling.sampling_settings import SampleSettings
from nemo_rpo.sampling.server_sampler import ServerSampler
from nemo_rpo.serving.servers import Servers

PROMPTS = [Prompt(f"p{i}", f"prompt {i}", {}) for i in range(5)]


def sampled(server, out, inputs="x", prompts=PROMPTS, **settings):
    settings = SampleSettings(url=server.url, retries=0, **settings)
    with ServerSampler(settings, out.with_suffix(".log")) as sampler:
        asks = asks_for(prompts, settings.samples, "run", 1)
        return collect(sampler, asks, out, inputs, settings.temperature)


def test_a_kill_at_any_byte_costs_no_answer(tmp_path):
    """The lines of an unbroken run, cut anywhere: the table is the same, and only what is missing is asked."""
    lines = {}

    def answer(path, body, number):
        lines.update(now=(tmp_path / "whole.jsonl").read_bytes() if (tmp_path / "whole.jsonl").exists() else b"")
        return by_seed(body)

    with FakeServer(answer) as server:
        sampled(server, tmp_path / "whole.parquet", concurrency=1)
        whole = read_table(tmp_path / "whole.parquet")
        assert len(whole[0]) == 20 and not (tmp_path / "whole.jsonl").exists()
        kept, draw = lines["now"], random.Random(0)
        assert kept.count(b"\n") >= 19
        for trial in range(20):
            out = tmp_path / f"{trial}.parquet"
            part = kept[: draw.randrange(len(kept) + 1)]
            out.with_suffix(".jsonl").write_bytes(part)
            server.seen.clear()
            sampled(server, out)
            assert read_table(out) == whole
            assert len(server.seen) == 20 - max(0, part.count(b"\n") - 1)
            server.seen.clear()
            sampled(server, out)
            assert not server.seen


def test_other_inputs_and_damaged_lines_are_refused(tmp_path):
    out = tmp_path / "r.parquet"
    with FakeServer(lambda path, body, number: by_seed(body)) as server:
        sampled(server, out)
        with pytest.raises(ConfigError, match=r"r\.parquet was made of other inputs"):
            sampled(server, out, inputs="y")
        lines = tmp_path / "s.jsonl"
        lines.write_text('{"nemo_rpo.inputs": "x"}\n{"prompt": \n')
        with pytest.raises(ValueError, match=r"s\.jsonl:2: bad JSON"):
            sampled(server, tmp_path / "s.parquet")


def test_two_processes_do_not_write_one_table(tmp_path):
    stage = Stage(tmp_path / "r.parquet", {"k": "int64"}, ("k",), "x")
    with pytest.raises(ConfigError, match="being written by another process"):
        Stage(tmp_path / "r.parquet", {"k": "int64"}, ("k",), "x")
    stage.add({"k": 1})
    stage.close()
    assert Stage(tmp_path / "r.parquet", {"k": "int64"}, ("k",), "x").rows == {(1,): {"k": 1}}


def test_seeds_are_of_the_ask_alone():
    asks = asks_for(PROMPTS, 4, "run", 1)
    assert len({ask.seed for ask in asks}) == 20
    assert {(a.prompt, a.index): a.seed for a in asks_for(PROMPTS[::-1], 4, "run", 1)} == {
        (a.prompt, a.index): a.seed for a in asks
    }
    assert not {a.seed for a in asks_for(PROMPTS, 4, "run", 2)} & {ask.seed for ask in asks}
    assert all(0 <= seed_of("r", 0, str(i), 0) < 2**31 for i in range(1000))


def test_a_server_that_ignores_the_temperature_is_refused(tmp_path):
    """One text for all seeds: refused, and nothing of it is kept. A prompt with one answer among others is none."""
    out = tmp_path / "r.parquet"
    with FakeServer(lambda *_: said("always the same")) as server:
        with pytest.raises(ConfigError, match="ignores the temperature"):
            sampled(server, out)
    assert not out.exists() and not out.with_suffix(".jsonl").exists()

    def answer(path, body, number):
        return said("yes") if body["prompt"] == "prompt 0" else by_seed(body)

    with FakeServer(answer) as server:
        assert len(sampled(server, out).kept) == 20


def test_what_is_cut_or_refused_is_left_out_and_counted(tmp_path):
    def answer(path, body, number):
        if body["prompt"] == "prompt 0":
            return said(f"cut {body['seed']}", finish="length")
        if body["prompt"] == "prompt 1":
            return refused(400, "too long")
        return said(" ") if body["prompt"] == "prompt 2" else by_seed(body)

    with FakeServer(answer) as server:
        found = sampled(server, tmp_path / "r.parquet")
    assert found.counts == {"length": 4, "failed": 8, "stop": 8}
    assert {r.prompt for r in found.kept} == {"p3", "p4"} and len(found.responses) == 20
    assert "4 cut at the limit" in found.as_text() and "8 failed" in found.as_text()
    assert read_responses(tmp_path / "r.parquet") == found


def test_a_server_that_refuses_everything_ignores_no_temperature(tmp_path):
    with FakeServer(lambda *_: refused(400, "too long")) as server:
        found = sampled(server, tmp_path / "r.parquet")
    assert found.counts == {"failed": 20} and "most often: 400: too long" in found.as_text()


def test_samples_of_which_none_is_whole_are_an_error(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a text"}\n')
    with FakeServer(lambda path, body, number: said(f"cut {body['seed']}", finish="length")) as server:
        given = ["sample", str(tmp_path / "p.jsonl"), "--url", server.url, "--out", str(tmp_path / "r.parquet")]
        assert main(given) == 2
    error = capsys.readouterr().err
    assert "4 cut at the limit and left out (set max_tokens higher)" in error and "delete the file" in error


def test_the_command_asks_as_the_settings_say(tmp_path, capsys):
    rows = [{"prompt_id": "x", "prompt": "a text"}, {"prompt": [{"role": "user", "content": "hello"}]}]
    prompts, config = tmp_path / "p.jsonl", tmp_path / "s.yaml"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text("sample: {samples: 2, stop: ['.'], extra: {top_k: 5}}")
    tokens = {"content": [{"token": "t", "logprob": -1.5, "top_logprobs": []}] * 2}

    def answer(path, body, number):
        chat = path.endswith("chat/completions")
        return said(f"text {body['seed']}", chat, logprobs=tokens if chat else {"token_logprobs": [-0.5, -0.25]})

    with FakeServer(answer) as server:
        out = tmp_path / "r.parquet"
        given = ["sample", str(prompts), "--url", server.url, "--out", str(out), "--config", str(config)]
        assert main([*given, "--temperature", "1.5", "--max-tokens", "9"]) == 0
        assert "4 samples, 4 kept" in capsys.readouterr().out
        for body in server.seen:
            assert body["temperature"] == 1.5 and body["top_p"] == 0.95 and body["max_tokens"] == 9
            assert body["stop"] == ["."] and body["top_k"] == 5 and body["model"] == "m"
        assert main(["sample", str(prompts), "--url", server.url, "--out", str(out), "--temperature", "0"]) == 2
        assert "sample.temperature is 0" in capsys.readouterr().err
    rows, _ = read_table(out)
    assert [row["logprob"] for row in rows] == [-0.75, -0.75, -3.0, -3.0]
    assert rows[0]["prompt"] == "x" and rows[0]["tokens"] == 5


class Weights:
    """What some weights give: each token -1 nat, and one continuation."""

    def logprobs(self, policy, texts):
        return [[-1.0] * (len(text) - 1) for text in texts]

    def greedy(self, policy, texts, tokens):
        return [f"after {text[:5]}" for text in texts]


@pytest.mark.parametrize(
    ("shift", "longer", "passes"), [(0.001, 0, True), (0.05, 0, False), (float("nan"), 0, False), (0.0, 1, False)]
)
def test_the_canary_compares_log_probs(shift, longer, passes, tmp_path):
    def answer(path, body, number):
        assert body["echo"] and body["prompt"] in TEXTS
        values = [None] + [-1.0 + shift] * (len(body["prompt"]) - 1 + longer) + [-9.0]
        return said(body["prompt"] + "x", logprobs={"token_logprobs": values})

    with FakeServer(answer) as server:
        settings = SampleSettings(url=server.url, retries=0)
        sampler = ServerSampler(settings, tmp_path / "log", Weights())
        if passes:
            sampler.use(tmp_path)
        else:
            with pytest.raises(RuntimeError, match="does not serve"):
                sampler.use(tmp_path)


@pytest.mark.parametrize(("same", "passes"), [(3, True), (2, False)])
def test_without_log_probs_it_compares_continuations(same, passes, tmp_path):
    def answer(path, body, number):
        if body.get("echo"):
            return refused(400, "no echo here")
        return said(f" after {body['prompt'][:5]}" if body["prompt"] in TEXTS[:same] else "something else")

    with FakeServer(answer) as server:
        settings = SampleSettings(url=server.url, retries=0)
        with Servers(settings, "sample", tmp_path / "log") as servers:
            if passes:
                check_weights(servers.first, tmp_path, Weights(), settings)
            else:
                with pytest.raises(RuntimeError, match="continues 2 of 4"):
                    check_weights(servers.first, tmp_path, Weights(), settings)
