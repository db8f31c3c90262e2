"""``nemo-rpo annotators``: what it prints and writes, gold labels, labels to buy and their answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nemo_rpo
from nemo_rpo.cli import main

from . import crowds


@pytest.fixture
def votes(tmp_path):
    lines, truth = crowds.rows(pairs=100)
    return crowds.write(tmp_path / "votes.jsonl", lines), lines, truth


def result_of(capsys, *args) -> dict:
    assert main(["annotators", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_prints_a_table_and_writes_csv_and_a_page(votes, tmp_path, capsys):
    path, lines, _ = votes
    lines[0]["votes"][0]["annotator"] = "=1+1"
    path.write_text("not json\n" + "".join(json.dumps(row) + "\n" for row in lines))
    out, page = tmp_path / "a.csv", tmp_path / "a.html"
    assert main(["annotators", str(path), "--csv", str(out), "--html", str(page)]) == 0
    printed = capsys.readouterr()
    assert "100 pairs" in printed.out and "retrain" in printed.out and "most doubtful labels" in printed.out
    assert "1 row left out, not readable" in printed.err
    assert "'=1+1" in [row["annotator"] for row in crowds.read_csv(out)]
    text = page.read_text(encoding="utf-8")
    assert "=1+1" in text and "<svg" in text
    assert not any(word in text for word in ("src=", 'href="http', "@import", "url(http"))


@pytest.mark.parametrize("asked", [["--csv"], ["--html"], ["--next", "3", "--overwrite", "--next-out"]])
def test_what_is_read_is_never_replaced(votes, capsys, asked):
    path, *_ = votes
    before = path.read_bytes()
    assert main(["annotators", str(path), *asked, str(path)]) != 0
    assert capsys.readouterr().err == f"error: {path} is read too, and would be lost; name another file to write\n"
    assert path.read_bytes() == before


def test_says_that_nobody_is_named_where_the_field_has_another_name(tmp_path, capsys):
    """Else all labels would be one annotator's in silence."""
    vote = {"prompt": "p", "response_a": "x", "response_b": "y", "vote": "a", "annotator_id": "w0"}
    path = crowds.write(tmp_path / "votes.jsonl", [vote, vote | {"annotator_id": "w1"}])
    for asked, silent in ([], False), (["--annotator-key", "annotator_id"], True):
        assert main(["annotators", str(path), *asked]) == 0
        assert ("no row says who labelled it" not in capsys.readouterr().err) == silent


def test_the_page_draws_who_changes_where_times_are_known(tmp_path, capsys):
    """One annotator, right at first, tosses a coin in the end."""
    rng, lines = np.random.default_rng(0), crowds.rows(pairs=160, votes=5, care=[0.9] * 6)[0]
    for i, row in enumerate(lines):
        for vote in row["votes"]:
            vote["time"] = 1000.0 + i
            if vote["annotator"] == "w0" and i > 80:
                vote["vote"] = "ab"[rng.integers(2)]
    pages = []
    for name in ("timed", "untimed"):
        path, page = crowds.write(tmp_path / f"{name}.jsonl", lines), tmp_path / f"{name}.html"
        assert main(["annotators", str(path), "--html", str(page)]) == 0
        pages.append(page.read_text(encoding="utf-8"))
        for vote in (vote for row in lines for vote in row["votes"]):
            vote.pop("time", None)
    assert "beyond chance, with all looked at: w0." in pages[0]
    assert pages[0].count("<svg") == 2 and pages[1].count("<svg") == 1


def test_votes_without_texts(tmp_path, capsys):
    """The same annotators under other names of the columns, as files of crowd platforms have them, as from Python."""
    rows = [(f"t{p}", w, "ab"[(p + (w == "dan" and p % 3 > 0)) % 2]) for p in range(60) for w in ("ann", "bob", "dan")]
    names = {"task": 0, "worker": 1, "label": 2}
    table = tmp_path / "votes.csv"
    table.write_text("task,worker,label\n" + "".join(",".join(row) + "\n" for row in rows))
    gold = tmp_path / "gold.csv"
    gold.write_text("task,gold\n" + "".join(f"t{p},{'ab'[p % 2]}\n" for p in range(30)) + "t99,a\n")
    assert main(["annotators", str(table), "--gold", str(gold), "--json"]) == 0
    printed = capsys.readouterr()
    assert "left out: 1 gold label of pairs that nobody labelled" in printed.err
    found = {row["annotator"]: row["verdict"] for row in json.loads(printed.out)["annotators"]}
    assert found["dan"] == "retrain" and found["ann"] != "retrain"
    columns = {name: [row[i] for row in rows] for name, i in names.items()}
    known = {f"t{p}": "ab"[p % 2] for p in range(30)}
    columns["gold"] = [known.get(task) for task in columns["task"]]
    result = nemo_rpo.estimate_reliability(columns, pair="task", annotator="worker", vote="label", gold="gold")
    assert found == {row.annotator: row.verdict for row in result.annotators}
    wrong = {
        "t1,ann,x": ":2: 'label' is 'x'",
        "t1,ann,1\nt1,bob,0": "1 and 0 but no -1",
        "t1,ann,a\n,ann,b": ":3: 'task'",
    }
    for text, said in wrong.items():
        table.write_text(f"task,worker,label\n{text}\n")
        assert main(["annotators", str(table)]) == 2
        assert said in capsys.readouterr().err
    table.write_text("task,worker,label\nt1,ann,a\n")
    assert main(["annotators", str(table), "--next", "3", "--next-out", str(tmp_path / "n.csv")]) == 2
    assert "without texts" in capsys.readouterr().err and not (tmp_path / "n.csv").exists()


def test_gold_of_a_file_by_id_or_by_rows(votes, tmp_path, capsys):
    path, lines, truth = votes
    by_id = crowds.write_csv(tmp_path / "gold.csv", [{"pair_id": p, "gold": truth[p]} for p in list(truth)[:40]])
    rows = []
    for row in lines[:40]:
        chosen, rejected = (
            ("response_a", "response_b") if truth[row["pair_id"]] == "a" else ("response_b", "response_a")
        )
        texts = {"chosen": row[chosen], "rejected": row[rejected]}
        rows.append({"pair_id": row["pair_id"], "prompt": row["prompt"], **texts})
    by_rows = crowds.write(tmp_path / "gold.jsonl", rows)
    first, second = (result_of(capsys, path, "--gold", gold) for gold in (by_id, by_rows))
    assert first == second and first["counts"]["gold"] == 40
    assert next(e for e in first["estimates"] if e["name"] == "label model")["right"] > 0.8


@pytest.mark.parametrize("tool", ["csv", "label_studio", "argilla"])
def test_labels_to_buy_come_back_as_votes(tool, votes, tmp_path, capsys):
    path, _, truth = votes
    out = tmp_path / {"csv": "t.csv", "label_studio": "t.json", "argilla": "t.jsonl"}[tool]
    before = result_of(capsys, path, "--next", "30", "--next-out", out)
    answered = tmp_path / f"answered{out.suffix}"
    better = {name: f"{side} of {name[1:]}" for name, side in truth.items()}
    if tool == "csv":
        tasks = crowds.read_csv(out)
        for task in tasks[1:]:
            task["vote"] = "a" if task["response_a"] == better[task["pair_id"]] else "b"
        crowds.write_csv(answered, tasks)
        assert tasks[0]["annotator"] in {
            row["annotator"] for row in before["annotators"] if row["verdict"] != "retrain"
        }
        asked = [task["pair_id"] for task in tasks]
    elif tool == "label_studio":
        tasks = json.loads(out.read_text())
        for task in tasks[1:]:
            left = task["data"]["answer1"] == better[task["data"]["pair_id"]]
            value = {"selected": "left" if left else "right"}
            task["annotations"] = [{"completed_by": "expert", "result": [{"type": "pairwise", "value": value}]}]
        tasks[0]["annotations"] = []
        answered.write_text(json.dumps(tasks))
        asked = [task["data"]["pair_id"] for task in tasks]
    else:
        tasks = [json.loads(line) for line in out.read_text().splitlines()]
        for task in tasks[1:]:
            side = "response_a" if task["response_a"] == better[task["id"]] else "response_b"
            task |= {"preference.responses": [side], "preference.responses.users": ["expert"]}
        tasks[0] |= {"preference.responses": [], "preference.responses.users": []}
        crowds.write(answered, tasks)
        asked = [task["id"] for task in tasks]
    assert len(set(asked)) == 30
    after = result_of(capsys, path, "--relabelled", answered)
    assert after["counts"]["pairs"] == before["counts"]["pairs"]
    assert after["counts"]["votes"] == before["counts"]["votes"] + 29
    if tool != "csv":
        [expert] = [row for row in after["annotators"] if row["annotator"] == "expert"]
        assert expert["labels"] == 29 and expert["reliability"] > 0.8


def test_prices_and_budget_bound_what_is_bought(votes, tmp_path, capsys):
    path, _, _ = votes
    prices = crowds.write_csv(
        tmp_path / "p.csv",
        [{"annotator": "w0", "price": 2}, {"annotator": "w1", "price": 1}, {"annotator": "w6", "price": 0.01}],
    )
    out = tmp_path / "t.csv"
    result_of(capsys, path, "--next", "20", "--next-out", out, "--prices", prices, "--budget", "15")
    asked = [row["annotator"] for row in crowds.read_csv(out)]
    assert set(asked) <= {"w0", "w1"} and asked.count("w0") * 2 + asked.count("w1") <= 15
    twice = crowds.write_csv(tmp_path / "q.csv", [{"annotator": "w0", "price": price} for price in (2, 3)])
    given = [str(path), "--next", "5", "--next-out", str(tmp_path / "u.csv"), "--prices", str(twice)]
    assert main(["annotators", *given]) == 2 and "'w0' has another price in an earlier row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--next", "0", "--next-out", "t.csv"], "--next must be 1 or more"),
        (["--next", "5"], "--next-out"),
        (["--budget", "5"], "--budget goes with --next"),
        (["--next", "5", "--next-out", "t.xyz"], "must end in"),
        (["--good-enough", "2"], "--good-enough"),
        (["--gold", "none.csv"], "none.csv does not exist"),
    ],
)
def test_mistakes_are_said_in_a_line(options, message, votes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["annotators", str(votes[0]), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "t.csv").exists()


def test_labels_both_ways_are_said_and_counted(votes, tmp_path, capsys):
    _, lines, _ = votes
    for row in lines[:3]:
        row["votes"] = [{"annotator": "torn", "vote": side} for side in "ab"]
    lines[3]["votes"] = [{"annotator": "judge", "vote": side, "shown_first": side} for side in "ab"]  # of the order
    result = result_of(capsys, crowds.write(tmp_path / "torn.jsonl", lines))
    assert result["counts"]["labelled_both_ways"] == 3
    (warning,) = [of["text"] for of in result["warnings"] if of["kind"] == "both_ways"]
    assert warning.startswith("3 pairs labelled both ways by the same annotator, torn (3 pairs)")
    alone = crowds.write(tmp_path / "alone.jsonl", lines[:2])
    assert main(["annotators", str(alone)]) == 2
    assert "every pair was labelled both ways by the same annotator: torn (2 pairs)" in capsys.readouterr().err


def test_labels_between_equal_texts_say_nothing(tmp_path, capsys):
    def row(prompt, a, b, **more):
        return [{"prompt": prompt, "chosen": a, "rejected": b, "annotator": f"w{k}", **more} for k in range(3)]

    rows = [*row("", "", ""), *row("q", "x", "x"), *row("q", "x", "x", pair_id="p"), *row("q", "x", "y")]
    path = crowds.write(tmp_path / "labels.jsonl", rows)
    assert main(["annotators", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["labels_left_out"] == 9 and result["counts"]["votes"] == 3
    assert {row["labels"] for row in result["annotators"]} == {1}
    assert "left out: 9 labels between two responses of the same text" in printed.err
    assert "3 rows without a prompt" in printed.err
    assert main(["annotators", str(crowds.write(path, rows[:6]))]) == 2
    assert "no row has a vote; left out: 6 labels between two responses" in capsys.readouterr().err


def test_texts_that_were_taken_out_do_not_matter_where_ids_and_sides_remain(votes, tmp_path, capsys):
    path, lines, _ = votes
    bare = [{**row, "prompt": "", "response_a": "", "response_b": ""} for row in lines]
    with_texts, without = (result_of(capsys, of) for of in (path, crowds.write(tmp_path / "bare.jsonl", bare)))
    assert without["labels_left_out"] == 0 and with_texts["counts"] == without["counts"]
