"""Judges: what they are shown, what is read in their answers, and which of them is switched off."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import Counter

import pytest

pytest.importorskip("openai", reason="servers are asked with the openai package (extra 'loop')")
from fake_server import FakeServer, refused, said

from nemo_rpo.cli import main
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.stage import read_table
from nemo_rpo.data.texts import read_responses
from nemo_rpo.data.vote_ledger import read_votes
from nemo_rpo.errors import ConfigError, ServerError
from nemo_rpo.judging.collecting import collect, judges_from
from nemo_rpo.judging.judged_pairs import JudgedPair, pairs_to_judge
from nemo_rpo.judging.judges.chat_judge import LanguageModelJudge
from nemo_rpo.judging.judging_settings import ChatJudge, JudgingSettings, judges_of
from nemo_rpo.judging.verdicts import Shown, Verdict

PAIRS = [JudgedPair(f"p{i}", f"prompt {i}", f"good {i}", f"bad {i}") for i in range(60)]


def good_is_first(body) -> bool:
    text = body["messages"][-1]["content"]
    return text.index("good") < text.index("bad")


def honest(path, body, number):
    return said(f"So I say [[{'A' if good_is_first(body) else 'B'}]]", chat=True)


def judged(server, tmp_path, pairs=PAIRS, settings=None, **block):
    blocks = judges_of([{"name": "j", "kind": "chat", "url": server.url, "retries": 0, **block}], tmp_path)
    [found] = collect(judges_from(blocks, tmp_path), pairs, tmp_path, settings or JudgingSettings())
    return found


def test_the_order_is_drawn_recorded_and_undone(tmp_path):
    with FakeServer(honest) as server:
        found = judged(server, tmp_path)
    first = Counter(verdict.shown_first for verdict in found.verdicts)
    assert set(first) == {"a", "b"} and min(first.values()) > 15
    assert {verdict.said for verdict in found.verdicts} == {"first", "second"}
    votes = found.votes()
    assert all(votes[pair.pair_id].sign == 1 for pair in PAIRS)
    slots = {v.pair: {"a": 1, "b": -1}[v.shown_first] for v in found.verdicts}
    assert all(vote.details.shown_first == slots[pair] for pair, vote in votes.items())


def test_both_orders_are_one_vote_and_a_flip_is_a_tie(tmp_path):
    """A judge who says A of every third pair whatever is there."""

    def answer(path, body, number):
        i = int(body["messages"][-1]["content"].split("prompt ")[1].split()[0])
        return said("[[A]]", chat=True) if i % 3 == 0 else honest(path, body, number)

    with FakeServer(answer) as server:
        found = judged(server, tmp_path, orders="both")
        assert len(server.seen) == 120
    votes = found.votes()
    assert [votes[f"p{i}"].sign for i in range(6)] == [0, 1, 1, 0, 1, 1]
    assert all(vote.details.shown_first == 0 for vote in votes.values())


@pytest.mark.parametrize(
    ("verdict", "answer", "expected"),
    [
        ("parse", said("[[A]] no, rather [[b]]", chat=True), ("second", None)),
        ("parse", said("[[ tie ]]", chat=True), ("tie", None)),
        ("parse", said("A is better", chat=True), (None, None)),
        ("choice", said(" B\n", chat=True), ("second", None)),
        ("choice", said("B because", chat=True), (None, None)),
    ],
)
def test_verdicts_are_read(verdict, answer, expected, tmp_path):
    with FakeServer(lambda *_: answer) as server:
        found = judged(server, tmp_path, PAIRS[:1], JudgingSettings(unparsed=1.0), verdict=verdict)
        assert (found.verdicts[0].said, found.verdicts[0].p_first) == expected
        if verdict == "choice":
            assert server.seen[0]["structured_outputs"] == {"choice": ["A", "B", "tie"]}


@pytest.mark.parametrize(
    ("chances", "said_", "p"),
    [
        ({"A": 0.6, " B": 0.2, "The": 0.2}, "first", 0.75),
        ({"a": 0.1, "A": 0.1, "B": 0.6}, "second", 0.25),
        ({"A": 0.1, "B": 0.1, "tie": 0.7}, "tie", 0.5),
        ({"A": 0.2, "B": 0.1, "Well": 0.7}, None, None),
    ],
)
def test_probabilities_are_of_the_two_words_alone(chances, said_, p, tmp_path):
    tops = [{"token": word, "logprob": math.log(chance), "bytes": None} for word, chance in chances.items()]
    logprobs = {"content": [{**tops[0], "top_logprobs": tops}]}
    with FakeServer(lambda *_: said("A", chat=True, logprobs=logprobs)) as server:
        found = judged(server, tmp_path, PAIRS[:1], JudgingSettings(unparsed=1.0), verdict="logprobs")
    [verdict] = found.verdicts
    assert verdict.said == said_ and verdict.p_first == (None if p is None else pytest.approx(p))
    if said_ is not None:
        confidence = found.votes()["p0"].details.confidence
        assert math.isnan(confidence) if said_ == "tie" else confidence == pytest.approx(abs(math.log(p / (1 - p))))


def test_a_useless_judge_is_found_out_early(tmp_path):
    with FakeServer(lambda *_: said("I cannot say.", chat=True)) as server:
        found = judged(server, tmp_path, settings=JudgingSettings(trial=20))
        assert len(server.seen) == 20 and found.votes() == {}
        assert "20 of 20 verdicts cannot be read (it said 'I cannot say.')" in found.off
        assert judged(server, tmp_path, settings=JudgingSettings(trial=20)) == found and len(server.seen) == 20


def test_what_is_refused_is_recorded_and_a_few_of_them_do_no_harm(tmp_path):
    def answer(path, body, number):
        return refused(400, "too long") if "prompt 7" in body["messages"][-1]["content"] else honest(path, body, number)

    with FakeServer(answer) as server:
        found = judged(server, tmp_path, PAIRS[:50])
    assert [(v.said, v.error) for v in found.verdicts if v.pair == "p7"] == [(None, "400: too long")]
    assert not found.off and len(found.votes()) == 49


def test_only_what_is_missing_is_asked(tmp_path):
    """A server that dies on the way; then another one; then a second judge beside the first."""

    def mortal(path, body, number):
        if len(first.seen) > 25:
            return None
        return honest(path, body, number)

    with FakeServer(mortal) as first:
        with pytest.raises(ServerError, match="verdicts are missing"):
            judged(first, tmp_path, concurrency=1)
    with FakeServer(honest) as second:
        found = judged(second, tmp_path)
        assert len(second.seen) == 60 - 25 and len(found.votes()) == 60
        blocks = [{"name": name, "kind": "chat", "url": second.url, "retries": 0} for name in ("j", "k")]
        collect(judges_from(judges_of(blocks, tmp_path), tmp_path), PAIRS, tmp_path, JudgingSettings())
        assert len(second.seen) == 60 - 25 + 60
    rows, _ = read_table(tmp_path / "verdicts.parquet")
    assert Counter(row["judge"] for row in rows) == {"j": 60, "k": 60}
    with pytest.raises(ConfigError, match="made of other inputs"):
        judged(second, tmp_path, PAIRS[:30])


def test_a_template_is_given_the_pair_and_refused_if_it_asks_for_more(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ fields.topic }}|{{ prompt }}|{{ first }}|{{ second }}|{{ words.first }}")
    block = {"name": "j", "kind": "chat", "url": "http://x", "prompt": "mine.jinja"}
    [settings] = judges_of([block], tmp_path)
    judge = LanguageModelJudge(settings, tmp_path / "log", "judges[0]")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    item = Shown("p", messages, [{"role": "assistant", "content": "x"}], "y", "a", {"topic": "sums"})
    assert judge.prompt.text(item) == "sums|user: hi\n\nassistant: ho|x|y|A"
    for text, words in (("{{ respons }}", "respons"), ("{% if %}", "mine.jinja:1")):
        (tmp_path / "mine.jinja").write_text(text)
        with pytest.raises(ConfigError, match=words):
            LanguageModelJudge(settings, tmp_path / "log", "judges[0]")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"kind": "chta"}, r"judges\[0\]\.kind must be one of chat, reward, generative, program, combined"),
        ({"name": "j", "kind": "chat"}, r"judges\[0\]\.url or judges\[0\]\.command"),
        ({"name": "j", "kind": "chat", "url": "http://x", "verdcit": "parse"}, "did you mean 'verdict'"),
        ({"name": "j", "kind": "chat", "url": "http://x", "orders": "fixed"}, "one of one, both"),
        ({"name": "j", "kind": "chat", "url": "http://x", "pattern": "A|B"}, "needs a group"),
        ({"name": "j", "kind": "chat", "url": "http://x", "words": {"first": "1"}}, "three different words"),
        ({"name": "j", "kind": "program", "call": "os"}, "module:function"),
        ({"name": "j", "kind": "program", "call": "no_such:f"}, "no_such cannot be imported"),
        ({"name": "j", "kind": "program", "call": "os:no_such"}, "no function 'no_such'"),
        ({"name": "j", "kind": "reward", "run": "nowhere"}, "folder of a reward model"),
        ({"name": " ", "kind": "program", "call": "os:getcwd"}, r"judges\[0\]\.name must be set"),
    ],
)
def test_settings_are_refused_before_anybody_is_asked(block, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        judges_from(judges_of([block], tmp_path), tmp_path)


def test_the_command_with_people_gold_and_programs(tmp_path, capsys, monkeypatch):
    """A right program, one that leans to the first place, one that raises; votes of two people; 30 anchors."""
    draw, lines, gold = random.Random(0), [], {}
    for i in range(150):
        right, wrong = f"The sum is {i + 7}.", f"The sum is {i + 9}."
        gold[f"p{i}"] = draw.choice("ab")
        a, b = (right, wrong) if gold[f"p{i}"] == "a" else (wrong, right)
        votes = [{"annotator": w, "vote": gold[f"p{i}"] if draw.random() < 0.8 else "tie"} for w in ("ann", "bob")]
        row = {"pair_id": f"p{i}", "prompt": f"{i} + 7?", "response_a": a, "response_b": b, "sum": i + 7}
        lines.append(row | ({"votes": votes} if i % 2 else {"votes": []}))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    anchors = "".join(f"p{i},{gold[f'p{i}']}\n" for i in range(30))
    (tmp_path / "gold.csv").write_text(f"pair_id,gold\n{anchors}nobody,a\n")
    (tmp_path / "my_judges.py").write_text(
        "import zlib\n"
        "def leaning(prompt, first, second, fields, share):\n"
        "    draw = zlib.crc32((prompt + first).encode()) % 100 / 100\n"
        "    return 0.9 if draw < share or str(fields['sum']) in first else 0.1\n"
        "def broken(prompt, first, second, fields): return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judges.yaml").write_text(
        "judges:\n"
        "- {name: exact, kind: program, call: 'nemo_rpo.judging.programs.answers:exact_answer',"
        " arguments: {field: sum}}\n"
        "- {name: leaning, kind: program, of: pair, call: 'my_judges:leaning', arguments: {share: 0.4}}\n"
        "- {name: broken, kind: program, of: pair, call: 'my_judges:broken'}\n"
    )
    given = ["judge", str(tmp_path / "pairs.jsonl"), "--judges", str(tmp_path / "judges.yaml")]
    given += ["--out", str(tmp_path / "out"), "--gold", str(tmp_path / "gold.csv")]
    assert main(given) == 0
    printed = capsys.readouterr()
    assert "judge broken is switched off: 150 of 150 verdicts cannot be read (ZeroDivisionError" in printed.out
    assert "right on 1.000 of held-out gold labels" in printed.out and "1 gold labels are for pairs" in printed.err
    with (tmp_path / "out/judges.csv").open() as file:
        found = {row["judge"]: row for row in csv.DictReader(file)}
    assert float(found["exact"]["reliability"]) > 0.9 and found["broken"]["off"]
    leaning = {name: float(found["leaning"][name]) for name in ("alpha", "beta", "delta")}
    assert leaning["delta"] > 0.1 and leaning["alpha"] > 0.95 > 0.75 > leaning["beta"]
    table = read_votes(tmp_path / "out/votes.jsonl")
    assert table.annotators.ids == ["ann", "bob", "exact", "leaning"] and table.pairs == 150
    assert (table.gold != 0).sum() == 30 and table.knows("shown_first") and table.knows("confidence")
    believed, _ = read_table(tmp_path / "out/believed.parquet")
    assert all((row["p_a"] > 0.5) == (gold[row["pair_id"]] == "a") for row in believed)


def test_rewards_combined_are_a_logical_and(tmp_path):
    """A response that is very good by one reward and bad by the other loses to one that is good by both; the order of
    the asking does not matter."""
    rewards = [{"call": "nemo_rpo.judging.programs.answers:matches", "arguments": {"pattern": p}} for p in "xyz"]
    block = {"name": "all", "kind": "combined", "rewards": rewards}
    pairs = [JudgedPair(f"p{i}", "q", f"x y {i}", f"x x x {i}") for i in range(6)]
    judges = judges_from(judges_of([block], tmp_path), tmp_path)
    [found] = collect(judges, pairs, tmp_path, JudgingSettings())
    assert {v.said for v in found.verdicts} == {"first"} and all(v.p_first > 0.5 for v in found.verdicts)
    [again] = judges_from(judges_of([block], tmp_path), tmp_path)
    items = [Shown(p.pair_id, p.prompt, p.a, p.b, "") for p in pairs]
    again.look_at(items)
    assert [v.p_first for v in again.judge(items[::-1])] == [v.p_first for v in found.verdicts][::-1]
    with pytest.raises(ConfigError, match="harmonic mean is of rewards above 0"):
        judges_from(judges_of([{**block, "combine": "harmonic"}], tmp_path), tmp_path)[0].look_at(items)


def test_a_name_that_has_votes_already_is_refused(tmp_path):
    block = {"name": "w", "kind": "program", "call": "nemo_rpo.judging.programs.answers:matches"}
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "q", "chosen": "x", "rejected": "y", "annotator": "w"}\n')
    pairs, _ = pairs_to_judge([path])
    with pytest.raises(ConfigError, match="'w' has votes in the file already"):
        collect(judges_from(judges_of([block], tmp_path), tmp_path), pairs, tmp_path, JudgingSettings())


def test_a_winner_recorded_first_does_not_decide_the_order(tmp_path):
    """Of rows that name a winner, a is the chosen one half of the time; votes and gold turn with it."""
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": f"x{i}", "rejected": f"y{i}", "annotator": "w"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row | {"gold": "chosen"}) + "\n" for row in rows))
    pairs, unknown = pairs_to_judge([path], gold=tmp_path / "gold.jsonl")
    assert unknown == 0
    for pair in pairs:
        assert pair.gold == pair.votes[0].sign == (1 if pair.a.startswith("x") else -1)
    assert 15 < sum(pair.gold == 1 for pair in pairs) < 45
    bare, _ = pairs_to_judge([path], labels=False)
    assert not any(pair.votes for pair in bare) and [p.a for p in bare] == [p.a for p in pairs]


def test_a_verdict_survives_its_row():
    verdict = Verdict("p", "j", "b", "first", 0.75, "raw", 0.1, 5.0)
    assert Verdict.of(verdict.row()) == verdict and verdict.sign == -1
    assert ChatJudge().outcome()["verdict"] == "parse"


def test_where_nothing_is_left_it_is_said_who_was_switched_off(tmp_path, capsys, monkeypatch):
    text = "def ties(prompt, first, second, fields): return 'tie'\n"
    (tmp_path / "some_judges.py").write_text(text + "def broken(prompt, first, second, fields): return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    pairs = [{"prompt": f"{i}?", "response_a": "x", "response_b": "y"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    block = "{{name: {0}, kind: program, of: pair, call: 'some_judges:{0}'}}"
    (tmp_path / "judges.yaml").write_text(f"judges: [{block.format('ties')}, {block.format('broken')}]\n")
    given = [str(tmp_path / "pairs.jsonl"), "--judges", str(tmp_path / "judges.yaml"), "--out", str(tmp_path / "out")]
    assert main(["judge", *given]) == 2
    assert "judges that were switched off: broken: 4 of 4 verdicts" in capsys.readouterr().err
    (tmp_path / "judges.yaml").write_text(f"judges: [{block.format('none')}]\n")
    assert main(["judge", *given[:-1], str(tmp_path / "new")]) == 2
    assert "has no function 'none'" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main(["genrm", *given[:-2], "--to", "prompts", "--out", str(tmp_path / "rows.jsonl")]) == 2
    assert "no language model to train" in capsys.readouterr().err


def test_responses_of_pairs_that_nobody_labelled_are_read(tmp_path):
    pairs = [{"prompt": "q?", "response_a": "x", "response_b": "y"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert [row.responses for row in read_responses([tmp_path / "pairs.jsonl"], RowFormat())] == [("x", "y")]
