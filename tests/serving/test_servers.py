"""Servers that stumble, and servers that die: what becomes of every item."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="servers are asked with the openai package (extra 'loop')")
import fake_server
from fake_server import HALF, FakeServer, refused, said

from nemo_rpo.errors import ConfigError, ServerError
from nemo_rpo.serving.servers import Refused, Servers, WrongAnswer
from nemo_rpo.serving.serving_settings import ServerSettings

STUMBLES = {
    "429": refused(429),
    "500": refused(500),
    "503": refused(503),
    "nothing": None,
    "half": HALF,
    "no choice": (200, {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": []}),
    "no JSON": (200, b"<html>"),
    "another thing": (200, ["x"]),
}


def request(server, item):
    answer = server.client.completions.create(model=server.model, prompt=str(item), max_tokens=3)
    if not answer.choices:
        raise WrongAnswer("an answer without a choice")
    return answer.choices[0].text


def asked(settings: ServerSettings, items, tmp_path, where="sample"):
    settings.check_server(where)
    with Servers(settings, where, tmp_path / "server.log") as servers:
        servers.serve("weights")
        return {found.item: found.answer for found in servers.ask(items, request, "samples")}


def echo(path, body, number):
    return said(body["prompt"])


@pytest.mark.parametrize("kind", STUMBLES)
def test_a_stumble_is_asked_again(kind, tmp_path):
    """Every second item meets it once; all are answered, each by its own answer, and once."""

    def answer(path, body, number):
        return STUMBLES[kind] if int(body["prompt"]) % 2 and not number else echo(path, body, number)

    with FakeServer(answer) as server:
        found = asked(ServerSettings(url=server.url, retries=2, concurrency=3), range(6), tmp_path)
        assert found == {i: str(i) for i in range(6)}
        assert len(server.seen) == 6 + 3


def test_what_a_server_refuses_is_final(tmp_path):
    def answer(path, body, number):
        return refused(400, "too long") if body["prompt"] == "2" else echo(path, body, number)

    with FakeServer(answer) as server:
        found = asked(ServerSettings(url=server.url, retries=2), range(4), tmp_path)
        assert found.pop(2) == Refused("400: too long")
        assert found == {i: str(i) for i in (0, 1, 3)}
        assert len(server.seen) == 4


@pytest.mark.parametrize(("status", "words"), [(401, "no key"), (404, "no such model")])
def test_what_is_wrong_with_all_items_ends_it(status, words, tmp_path):
    with FakeServer(lambda *_: refused(status, words)) as server:
        with pytest.raises(ServerError, match=words):
            asked(ServerSettings(url=server.url, retries=0, concurrency=1), range(50), tmp_path)
        assert len(server.seen) < 5


def test_a_key_goes_only_to_a_server_that_is_meant_to_have_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("MY_KEY", "mine")
    with FakeServer(echo) as server:
        for given, sent in ((None, "Bearer none"), ("MY_KEY", "Bearer mine")):
            asked(ServerSettings(url=server.url, api_key_env=given), [1], tmp_path)
            assert server.keys[-1] == sent


def test_an_item_that_breaks_a_server_is_refused_and_a_busy_server_is_waited_for(tmp_path):
    """500 for one item for ever, where the others are answered, is about the item; 429 for ever is not."""

    def broken(path, body, number):
        return refused(500, "cannot") if body["prompt"] == "3" else echo(path, body, number)

    with FakeServer(broken) as server:
        found = asked(ServerSettings(url=server.url, retries=1), range(5), tmp_path)
        assert found[3] == Refused("500: cannot") and len(found) == 5
    with FakeServer(lambda p, b, n: refused(429, "slow") if b["prompt"] == "3" else echo(p, b, n)) as server:
        with pytest.raises(ServerError, match=r"1 of 5 samples are missing \(429: slow\).*goes on from there"):
            asked(ServerSettings(url=server.url, retries=1), range(5), tmp_path)


def test_a_server_that_dies_is_named_with_what_is_missing(tmp_path):
    def answer(path, body, number):
        if int(body["prompt"]) == 4:
            server.stop()
            return None
        return echo(path, body, number)

    settings = ServerSettings(retries=0, concurrency=1)
    with FakeServer(answer) as server:
        settings.url = server.url
        with Servers(settings, "sample", tmp_path / "log") as servers:
            found = []
            with pytest.raises(ServerError, match=f"{server.url}: 6 of 10 samples are missing"):
                found += [one.item for one in servers.ask(range(10), request, "samples")]
                pytest.fail("it went on")
    with pytest.raises(ServerError, match=r"does not answer .*mend sample\.url"):
        asked(settings, range(2), tmp_path)


def test_one_of_two_urls_is_enough(tmp_path):
    def mortal(path, body, number):
        first.stop()
        return None

    with FakeServer(mortal) as first, FakeServer(echo) as second:
        found = asked(ServerSettings(url=[first.url, second.url], retries=0, concurrency=1), range(6), tmp_path)
        assert found == {i: str(i) for i in range(6)}
        first.stop = lambda: None


def command(*args) -> str:
    return f"{sys.executable} {Path(fake_server.__file__)} --port {{port}} {shlex.join(map(str, args))}"


def test_a_server_of_ours_is_started_once_more(tmp_path):
    settings = ServerSettings(command=command("--die", 4, "--once", tmp_path / "died"), retries=0, start_s=30)
    found = asked(settings, range(8), tmp_path)
    assert set(found) == set(range(8)) and not any(isinstance(answer, Refused) for answer in found.values())
    settings = ServerSettings(command=command("--die", 3), retries=0, start_s=30, concurrency=1)
    with pytest.raises(ServerError, match=r"of 8 samples are missing"):
        asked(settings, range(8), tmp_path)


def test_a_server_that_does_not_come_up_says_why(tmp_path):
    gone = f"{sys.executable} -c 'print(\"no weights\"); raise SystemExit(3)' {{port}}"
    with pytest.raises(ServerError, match=r"ended with status 3 \(no weights\).*server\.log"):
        asked(ServerSettings(command=gone), [1], tmp_path)
    with pytest.raises(ConfigError, match="cannot be run"):
        asked(ServerSettings(command="no-such-program {port}"), [1], tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ServerSettings(), r"sample\.url or sample\.command"),
        (ServerSettings(url="host:8000"), "http://"),
        (ServerSettings(command="serve"), r"\{port\}"),
        (ServerSettings(url="http://x", api_key_env="NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        settings.check_server("sample")
