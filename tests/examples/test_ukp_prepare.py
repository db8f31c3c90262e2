"""UKPConvArg1 preparation: on a miniature made here, and on the real votes where they are present."""

import csv
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nemo_rpo.errors import DataError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ukpconvarg1"
TITLES, WORKERS, ARGUMENTS = 5, 12, 6


@pytest.fixture(scope="module")
def example():
    """The example's modules, importable as they are when its scripts run."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import competence
        import length_rule
        import prepare
        import selection
        import ukp

        yield SimpleNamespace(
            competence=competence, length_rule=length_rule, prepare=prepare, selection=selection, ukp=ukp
        )
    finally:
        sys.path.remove(str(EXAMPLE))


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five debates with two stances, six arguments each; votes of worker w00 outnumber everybody else's."""
    path = tmp_path_factory.mktemp("ukp")
    rng = np.random.default_rng(0)
    topics, arguments, pairs, votes = [], [], [], []
    for t in range(2 * TITLES):
        topics.append({"topic": f"t{t}", "title": f"Debate {t // 2}?", "stance": ("yes", "no")[t % 2]})
        texts = [" ".join(["word"] * int(rng.integers(2, 30))) + f" {n}" for n in range(ARGUMENTS)]
        texts[1] = texts[0]
        arguments += [{"topic": f"t{t}", "arg": f"arg{n}", "text": text} for n, text in enumerate(texts)]
        for a, b in itertools.combinations(range(ARGUMENTS), 2):
            item = f"t{t}_arg{a}_arg{b}"
            gold = ("a", "b", "tie", "")[int(rng.integers(4))]
            pairs.append({"item_id": item, "topic": f"t{t}", "arg_a": f"arg{a}", "arg_b": f"arg{b}", "gold": gold})
            cast = {0, *rng.choice(np.arange(1, WORKERS), 3, replace=False).tolist()}
            values = ["tie"] * 4 if (a, b) == (2, 3) else [("a", "b", "tie")[int(rng.integers(3))] for _ in cast]
            votes += [{"item_id": item, "annotator": f"w{w:02d}", "vote": v} for w, v in zip(cast, values, strict=True)]
    for name, rows in (("topics", topics), ("arguments", arguments)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_csv(path / "pairs.csv", pairs)
    write_csv(path / "votes.csv", votes)
    competence = [{"annotator": f"w{w:02d}", "mace_competence": w / WORKERS} for w in range(WORKERS)]
    write_csv(path / "workers.csv", competence)
    return path


def run(example, data: Path, out: Path, *options: str) -> tuple[list[dict], list[dict], dict]:
    assert example.prepare.main(["--data", str(data), "--out", str(out), "--held-out", "2", *options]) == 0
    train, validation = (
        [json.loads(line) for line in (out / name).read_text().splitlines()]
        for name in ("train.jsonl", "validation.jsonl")
    )
    return train, validation, json.loads((out / "truth.json").read_text())


def votes_of(rows: list[dict]) -> dict[tuple[str, str], str]:
    return {(row["pair_id"], vote["annotator"]): vote["vote"] for row in rows for vote in row["votes"]}


def test_the_split_keeps_both_stances_of_a_debate_together(example, folder, tmp_path):
    train, validation, truth = run(example, folder, tmp_path)
    debates = [{row["prompt"].split("\n")[0] for row in part} for part in (train, validation)]
    assert not debates[0] & debates[1]
    assert debates[1] == set(truth["held_out_titles"]) and len(debates[1]) == 2
    assert {row["prompt"].split("\n")[1] for row in train} == {"yes", "no"}


def test_votes_and_gold_reach_the_files_unchanged(example, folder, tmp_path):
    train, validation, _ = run(example, folder, tmp_path)
    source = {pair.pair_id: pair for pair in example.ukp.read_pairs(folder)}
    for row in train:
        pair = source[row["pair_id"]]
        assert row["prompt"] == f"{pair.title}\n{pair.stance}\n"
        assert (row["response_a"], row["response_b"], row["gold"] or "") == (
            pair.response_a,
            pair.response_b,
            pair.gold,
        )
        assert [(v["annotator"], v["vote"]) for v in row["votes"]] == [(v.annotator, v.vote) for v in pair.votes]
    for row in validation:
        pair = source[row["pair_id"]]
        assert (row["chosen"], row["rejected"]) == pair.responses(pair.gold)


def test_pairs_without_evidence_are_left_out_and_counted(example, folder, tmp_path):
    train, validation, truth = run(example, folder, tmp_path)
    ids = {row["pair_id"] for row in train + validation}
    assert not any(name.endswith("arg0_arg1") for name in ids), "identical arguments"
    assert not any(row["pair_id"].endswith("arg2_arg3") for row in train), "ties only"
    pairs = [p for p in example.ukp.read_pairs(folder) if p.title not in truth["held_out_titles"]]
    silent = [p for p in pairs if not p.signed_votes]
    identical = [p for p in pairs if p.signed_votes and p.response_a == p.response_b]
    assert truth["left_out"]["train"] == {"no signed vote": len(silent), "identical arguments": len(identical)}
    assert len(train) == len(pairs) - len(silent) - len(identical)


def test_one_row_per_vote_holds_the_same_signed_votes(example, folder, tmp_path):
    by_pair, _, truth = run(example, folder, tmp_path / "pair")
    by_vote, _, _ = run(example, folder, tmp_path / "vote", "--one-row-per-vote")
    sides = {row["pair_id"]: row for row in by_pair}
    found = {
        (row["pair_id"], row["annotator"]): "a" if row["chosen"] == sides[row["pair_id"]]["response_a"] else "b"
        for row in by_vote
    }
    expected = votes_of(by_pair)
    assert found == {key: vote for key, vote in expected.items() if vote != "tie"}
    assert truth["train"]["signed_votes"] == len(by_vote)
    assert truth["train"]["ties"] == len(expected) - len(by_vote) > 0


@pytest.mark.parametrize("unit", ["worker", "vote"])
def test_the_inverted_share_is_met_and_recorded(example, folder, tmp_path, unit):
    before = votes_of(run(example, folder, tmp_path / "before")[0])
    rows, _, truth = run(example, folder, tmp_path / "after", "--invert", "0.4", "--invert-by", unit)
    after = votes_of(rows)
    signed = [key for key, vote in before.items() if vote != "tie"]
    changed = [key for key in signed if after[key] != before[key]]
    assert all(after[key] == "tie" for key, vote in before.items() if vote == "tie")
    assert truth["train"]["inverted_share"] == pytest.approx(len(changed) / len(signed))
    if unit == "worker":
        assert {key for key in signed if key[1] in truth["inverted_workers"]} == set(changed)
        assert 0.3 < len(changed) / len(signed) <= 0.4 + 0.5 / len(signed)
    else:
        assert len(changed) == round(0.4 * len(signed)) and truth["inverted_workers"] == []


def test_a_limit_keeps_whole_pairs_and_smaller_limits_are_contained(example, folder, tmp_path):
    everything, _, _ = run(example, folder, tmp_path / "all")
    few, _, truth = run(example, folder, tmp_path / "few", "--limit-votes", "40", "--limit-validation", "5")
    more, validation, _ = run(example, folder, tmp_path / "more", "--limit-votes", "80", "--limit-validation", "7")
    assert 40 <= truth["train"]["signed_votes"] < 44
    assert {row["pair_id"] for row in few} < {row["pair_id"] for row in more}
    assert all(row in everything for row in more)
    assert truth["validation"]["pairs"] == 5 and len(validation) == 7


def test_rare_workers_can_be_left_out(example, folder, tmp_path):
    rows, _, _ = run(example, folder, tmp_path, "--min-worker-votes", "40")
    assert {worker for _, worker in votes_of(rows)} == {"w00"}


def test_the_seed_decides(example, folder, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(example, folder, tmp_path / name, "--invert", "0.3", "--seed", str(seed))
    texts = [(tmp_path / name / "train.jsonl").read_bytes() for name in ("one", "again", "other")]
    assert texts[0] == texts[1] != texts[2]


def test_over_long_arguments_are_left_out(example, folder, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="counting tokens needs the hf extra")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    full, _, _ = run(example, folder, tmp_path / "full")
    train, _, truth = run(example, folder, tmp_path / "short", "--tokenizer", str(tmp_path), "--max-tokens", "20")

    def length(row: dict) -> int:
        prompt = len(row["prompt"].split())
        return 2 + prompt + max(len(row[side].split()) for side in ("response_a", "response_b"))

    assert train == [row for row in full if length(row) <= 20] and 0 < len(train) < len(full)
    assert truth["left_out"]["train"]["over 20 tokens"] == len(full) - len(train)


def test_the_package_reads_the_prepared_files(example, folder, tmp_path):
    from nemo_rpo.data.data_settings import RowFormat
    from nemo_rpo.data.formats import read_rows

    for options in ((), ("--one-row-per-vote",)):
        train, validation, _ = run(example, folder, tmp_path, *options)
        read = [list(read_rows(tmp_path / name, RowFormat())) for name in ("train.jsonl", "validation.jsonl")]
        assert [len(rows) for rows in read] == [len(train), len(validation)]
        expected = sum(len(row.get("votes", [None])) for row in train)
        assert sum(len(row.votes) for row in read[0]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out", "5"], "--held-out must lie between 1 and 4 of the 5 titles, got 5"),
        (["--invert", "1.5"], "--invert must be a share between 0 and 1, got 1.5"),
        (["--tokenizer", "absent"], "tokenizer.json does not exist"),
        (["--min-worker-votes", "10000"], "no pairs are left"),
        (["--data", "absent"], "topics.jsonl does not exist"),
    ],
)
def test_bad_options_get_one_line(example, folder, tmp_path, capsys, options, message):
    assert example.prepare.main(["--data", str(folder), "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("votes.csv", "item_id,worker\n", "no field 'annotator'; it has 'item_id', 'worker'"),
        ("votes.csv", "item_id,annotator,vote\nnowhere,w00,a\n", "1 items are not in pairs.csv, the first 'nowhere'"),
        ("votes.csv", "item_id,annotator,vote\nnowhere,w00,c\n", "the vote 'c', not a, b or tie"),
        ("topics.jsonl", "{}\n", "topics.jsonl:1: no field 'topic'; it has none"),
        ("topics.jsonl", "{\n", "topics.jsonl:1: not JSON"),
        ("pairs.csv", "item_id,topic,arg_a,arg_b,gold\nx,t99,arg0,arg1,a\n", "x names 't99', which is not there"),
    ],
)
def test_damaged_folders_are_named(example, folder, tmp_path, file, text, message):
    for source in folder.iterdir():
        (tmp_path / source.name).write_text(text if source.name == file else source.read_text())
    with pytest.raises(DataError, match=message):
        example.ukp.read_pairs(tmp_path)


def test_length_rule_counts_characters_of_the_gold_side(example):
    def pair(gold: str, a: str, b: str):
        return example.ukp.Pair("", "", "", a, b, gold, ())

    pairs = [pair("a", "long", "no"), pair("b", "long", "no"), pair("b", "no", "long"), pair("a", "eq", "al")]
    assert example.length_rule.longer_wins([*pairs, pair("tie", "x", "yy"), pair("", "x", "yy")]) == pytest.approx(
        2 / 3
    )


def test_rank_statistics_on_known_values(example):
    c = example.competence
    np.testing.assert_array_equal(c.ranks(np.array([3.0, 1.0, 3.0, 7.0])), [2.5, 1.0, 2.5, 4.0])
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert c.spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert c.spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert c.spearman(x, np.array([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert np.isnan(c.spearman(x, np.ones(5)))
    assert c.auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert c.auc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx(2.5 / 4)
    assert np.isnan(c.auc(np.array([]), x))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_competence_leaves_inverted_workers_out_of_the_correlation(example, folder, tmp_path, capsys, suffix):
    rows = [{"id": f"w{w:02d}", "labels": 40, "eta": 0.1 if w < 3 else 0.5 + w / 100} for w in range(WORKERS)]
    table = tmp_path / f"annotators.{suffix}"
    if suffix == "csv":
        write_csv(table, rows)
    else:
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"inverted_workers": ["w00", "w01", "w02"]}))
    assert example.competence.main(["--data", str(folder), "--annotators", str(table), "--truth", str(truth)]) == 0
    printed = capsys.readouterr().out
    assert "1.000 (9 workers)" in printed and "1.000 (3 inverted workers)" in printed
    figures = example.competence.compare({"w03": (29, 0.5), "w04": (30, 0.6)}, {"w03": 0.1, "w04": 0.2}, set(), 30)
    assert figures["workers"] == 1
    with pytest.raises(DataError, match=r"1 annotators are not in workers\.csv, one is 'nobody'"):
        example.competence.compare({"nobody": (30, 0.5)}, {}, set(), 30)


def test_the_real_data_set(example, shared_data, tmp_path):
    """Counts of the published data set, and the figure its authors' gold labels give the length rule."""
    folder = shared_data / "ukpconvarg1"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    pairs = example.ukp.read_pairs(folder)
    votes = [vote for pair in pairs for vote in pair.votes]
    assert (len(pairs), len(votes)) == (16_927, 84_445)
    assert Counter(vote.vote for vote in votes) == {"a": 32_849, "b": 32_491, "tie": 19_105}
    assert len({vote.annotator for vote in votes}) == len(example.ukp.read_competence(folder)) == 3_815
    assert Counter(len(pair.votes) for pair in pairs) == {4: 190, 5: 16_737}
    assert sum(pair.gold == "" for pair in pairs) == 846
    assert len({pair.title for pair in pairs}) == 16
    assert round(example.length_rule.longer_wins(pairs), 3) == 0.746

    options = ("--limit-votes", "6000", "--invert", "0.4")
    train, validation, truth = run(example, folder, tmp_path, *options)
    assert 6_000 <= truth["train"]["signed_votes"] < 6_005
    assert truth["train"]["inverted_share"] == pytest.approx(0.4, abs=0.001)
    assert len(train) == truth["train"]["pairs"] and len(validation) == truth["validation"]["pairs"]


def test_every_real_argument_fits_the_story_model(example, shared_data, tmp_path):
    pytest.importorskip("tokenizers", reason="counting tokens needs the hf extra")
    tokenizer = shared_data / "stories260k" / "hf"
    if not tokenizer.is_dir():
        pytest.skip(f"{tokenizer} does not exist")
    _, _, truth = run(example, shared_data / "ukpconvarg1", tmp_path, "--tokenizer", str(tokenizer))
    assert [reasons["over 512 tokens"] for reasons in truth["left_out"].values()] == [0, 0]
