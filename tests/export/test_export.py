"""What is exported is what the record says, readable again by this package, and the rest of the data untouched."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report.runs import Crowd, make_run

pytest.importorskip("pyarrow", reason="a run's record needs pyarrow: pip install 'nemo-rpo[report]'")

from nemo_rpo.cli import main
from nemo_rpo.data.formats import read_rows
from nemo_rpo.report.run import Run, read_run
from nemo_rpo.report.source import training_files

Label = tuple[str, str, str]  # pair, annotator, the response they prefer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Crowd]:
    folder = tmp_path_factory.mktemp("export") / "run"
    return folder, make_run(folder, [0.95, 0.9, 0.8, 0.7, 0.1], pairs=120)


@pytest.fixture(scope="module")
def run(made: tuple[Path, Crowd]) -> Run:
    return read_run(made[0])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def original(run: Run) -> Iterator[tuple[int, Label, Label]]:
    """Each label's row in the record, what it says and what its opposite would say, from the data itself."""
    by_pair = {row["pair_id"]: row for row in rows_of(Path(run.cfg.model.data.data_prefix["train"]))}
    seen: dict[str, int] = {}
    for row, pair_id in enumerate(run.labels.pair_id):
        n = seen[pair_id] = seen.get(pair_id, -1) + 1
        data = by_pair[pair_id]
        vote = data["votes"][n]
        said, other = (data["response_a"], data["response_b"])[:: 1 if vote["vote"] == "a" else -1]
        yield row, (pair_id, vote["annotator"], said), (pair_id, vote["annotator"], other)


def labels_in(path: Path) -> list[Label]:
    """As training reads them."""
    found = []
    for row in read_rows(path):
        for vote in row.votes:
            found.append((row.pair_id, vote.annotator, row.chosen if vote.sign > 0 else row.rejected))
    return found


def export(run: Run, *arguments: object) -> int:
    return main(["export", str(run.folder), *map(str, arguments)])


@pytest.mark.parametrize("layout", ["hf", "nemo_rl", "nemo_aligner", "votes"])
@pytest.mark.parametrize("wrong", ["drop", "swap", "weigh", "keep"])
def test_labels_in_every_layout(run: Run, tmp_path: Path, layout: str, wrong: str, capsys) -> None:
    out = tmp_path / "out.jsonl"
    assert export(run, "data", "--to", layout, "--wrong", wrong, "--out", out) == 0
    expected = []
    for row, said, opposite in original(run):
        bad = run.labels.w_last[row] < 0.5
        if wrong == "swap" and bad:
            expected.append(opposite)
        elif not (wrong == "drop" and bad):
            expected.append(said)
    found = labels_in(out)
    if layout == "nemo_rl":  # messages there
        found = [(pair, who, text[0]["content"]) for pair, who, text in found]
    assert sorted(found) == sorted(expected)
    distrusted = int(run.labels.distrusted.sum())
    said = capsys.readouterr().out
    assert 0 < distrusted < len(run.labels)
    if wrong in ("drop", "swap"):
        assert f"{distrusted:,} {wrong.replace('drop', 'dropp')}ed".replace("swaped", "swapped") in said


@pytest.mark.parametrize("layout", ["hf", "nemo_rl", "nemo_aligner", "votes"])
def test_weights(run: Run, tmp_path: Path, layout: str) -> None:
    """The weight of a row is the probability that its label is right."""
    out = tmp_path / "out.jsonl"
    assert export(run, "data", "--to", layout, "--wrong", "weigh", "--out", out) == 0
    expected = {said[:2]: run.labels.w_last[row] for row, said, _ in original(run)}
    found = {}
    for row in rows_of(out):
        for cast in row["votes"] if layout == "votes" else [row]:
            found[row["pair_id"], cast["annotator"]] = cast["weight"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_as_a_hugging_face_data_set(run: Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="saved data sets need datasets: pip install 'nemo-rpo[data]'")
    assert export(run, "data", "--wrong", "weigh", "--out", tmp_path / "clean") == 0
    saved = datasets.load_from_disk(str(tmp_path / "clean"))
    assert {"prompt", "chosen", "rejected", "annotator", "weight"} <= set(saved.column_names)
    assert len(saved) == len(run.labels)


def test_a_threshold_of_its_own(run: Run, tmp_path: Path) -> None:
    assert export(run, "data", "--threshold", "0.9", "--out", tmp_path / "strict.jsonl") == 0
    assert len(labels_in(tmp_path / "strict.jsonl")) == int((run.labels.w_last >= 0.9).sum())


def doubtful(run: Run, path: Path, *arguments: object) -> list[dict]:
    assert export(run, "doubtful", "--out", path, *arguments) == 0
    if path.suffix != ".csv":
        return rows_of(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_doubtful_labels(run: Run, tmp_path: Path, suffix: str) -> None:
    found = doubtful(run, tmp_path / f"doubtful{suffix}", "--limit", 10)
    assert len(found) == 10 and len({row["pair_id"] for row in found}) == 10
    said = {row: label for row, label, _ in original(run)}
    wrong = [float(row["probability_wrong"]) for row in found]
    assert wrong == sorted(wrong, reverse=True) and wrong[0] == pytest.approx(
        1 - np.nanmin(run.labels.w_last), abs=1e-6
    )
    for row in found:
        label = int(row["label_id"])
        pair_id, annotator, text = said[label]
        assert (row["pair_id"], row["annotator"], row[f"response_{row['label']}"]) == (pair_id, annotator, text)
        agrees = run.labels.sign[label] * run.labels.delta_last[label] > 0
        assert row["model_prefers"] == (row["label"] if agrees else {"a": "b", "b": "a"}[row["label"]])
        assert row["relabel"] == ""


def test_blind(run: Run, tmp_path: Path) -> None:
    found = doubtful(run, tmp_path / "blind.csv", "--blind")
    assert set(found[0]) == {
        "label_id", "pair_id", "prompt", "response_a", "response_b", "relabel", "relabelled_by"
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_relabelled_rows_come_back(run: Run, tmp_path: Path, suffix: str, capsys) -> None:
    """Confirmed, turned round, called a tie, left open; all other labels as they were."""
    path = tmp_path / f"relabel{suffix}"
    found = doubtful(run, path, "--limit", 8)
    opposite = {"a": "b", "b": "a"}
    answers = [found[0]["label"], opposite[found[1]["label"]], "tie", ""]
    for row, answer in zip(found, answers, strict=False):
        row["relabel"] = answer
    found[1]["relabelled_by"] = "expert"
    if suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, found[0])
            writer.writeheader()
            writer.writerows(found)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    out = tmp_path / "out.jsonl"
    arguments = ["--wrong", "keep", "--to", "hf", "--relabelled", path, "--relabelled-as", "second-look", "--out", out]
    assert export(run, "data", *arguments) == 0
    expected = []
    for row, said, turned in original(run):
        place = next((n for n, doubted in enumerate(found[:3]) if int(doubted["label_id"]) == row), None)
        if place == 0:
            expected.append((said[0], "second-look", said[2]))
        elif place == 1:
            expected.append((said[0], "expert", turned[2]))
        elif place is None:
            expected.append(said)
    assert sorted(labels_in(out)) == sorted(expected)
    said = capsys.readouterr().out
    for part in ("3 relabelled", "5 rows without an answer", "ties (the layout names a winner): 1"):
        assert part in said


@pytest.mark.parametrize("layout", ["hf", "votes"])
def test_win_rates_are_means_over_the_pairs_of_the_prompt(run: Run, tmp_path: Path, layout: str) -> None:
    """Computed again from the record, response by response; a row's columns go with its chosen response."""
    out = tmp_path / "out.jsonl"
    assert export(run, "data", "--to", layout, "--wrong", "keep", "--win-rates", "--out", out) == 0
    data = {row["pair_id"]: row for row in rows_of(Path(run.cfg.model.data.data_prefix["train"]))}
    beats: dict[tuple[str, str], list[float]] = {}
    of_pair = {}
    for row, (pair_id, _, said), _ in original(run):
        if np.isnan(run.labels.w_last[row]) or pair_id in of_pair:
            continue
        w = float(run.labels.w_last[row])
        of_pair[pair_id] = w if said == data[pair_id]["response_a"] else 1 - w
        for side, p in (("a", of_pair[pair_id]), ("b", 1 - of_pair[pair_id])):
            beats.setdefault((data[pair_id]["prompt"], data[pair_id][f"response_{side}"]), [0.5]).append(p)
    seen = 0
    for row in rows_of(out):
        first, second = ("chosen", "rejected") if layout == "hf" else ("response_a", "response_b")
        pair = data[row["pair_id"]]
        if row["pair_id"] not in of_pair:
            continue
        seen += 1
        p = of_pair[row["pair_id"]]
        assert row["win_rate"] == pytest.approx(p if row[first] == pair["response_a"] else 1 - p, abs=1e-5)
        for side, name in ((first, "chosen"), (second, "rejected")):
            found = row.get(f"{name}_win_rate", row.get(f"win_rate_{name}"))
            assert found == pytest.approx(np.mean(beats[pair["prompt"], row[side]]), abs=1e-5)
    assert seen >= 100
    [read, *_] = read_rows(out)
    assert {"win_rate", "chosen_win_rate", "rejected_preference_score"} <= read.columns.keys()


def test_annotator_weights(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "weights.csv"
    assert export(run, "annotators", "--out", out) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["annotator"] == "w0004" and float(rows[0]["weight"]) < 0 < float(rows[-1]["weight"])
    for row in rows:
        eta = float(row["eta"])
        assert float(row["weight"]) == pytest.approx(np.log(eta / (1 - eta)), abs=1e-4)
        assert float(row["low"]) < eta < float(row["high"])


BAD_ROWS = {
    "an answer there is none of": ({"relabel": "c"}, "relabel is 'c'; it can be a, b, tie, or nothing"),
    "another pair": ({"pair_id": "p999"}, "is no label of"),
    "no label": ({"label_id": "100000"}, "is no label of"),
    "a lost column": ({"label_id": None}, "keep that column of the exported file"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_relabelled_rows_are_named(run: Run, tmp_path: Path, case: str, capsys) -> None:
    change, expected = BAD_ROWS[case]
    path, out = tmp_path / "relabel.jsonl", tmp_path / "out.jsonl"
    found = doubtful(run, path, "--limit", 3)
    found[1] |= {"relabel": "a", **change}
    path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    capsys.readouterr()
    refused(run, ["data", "--relabelled", path, "--out", out], f"{path}:2: ", expected, capsys=capsys)


def test_twice_the_same_label(run: Run, tmp_path: Path, capsys) -> None:
    path, out = tmp_path / "relabel.jsonl", tmp_path / "out.jsonl"
    found = doubtful(run, path, "--limit", 1)
    path.write_text("".join(f"{json.dumps(row | {'relabel': 'a'})}\n" for row in (*found, *found)))
    capsys.readouterr()
    refused(run, ["data", "--relabelled", path, "--out", out], "stands in an earlier row too", capsys=capsys)


def refused(run: Run, arguments: list, *expected: str, capsys) -> None:
    before = sorted(run.folder.parent.rglob("*"))
    out = arguments[arguments.index("--out") + 1]
    there = out.exists() and out.stat().st_mtime_ns
    assert export(run, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and all(text in said.err for text in expected)
    assert sorted(run.folder.parent.rglob("*")) == before and (out.exists() and out.stat().st_mtime_ns) == there


@pytest.mark.parametrize("what", ["doubtful", "data", "annotators"])
def test_what_cannot_be_written(run: Run, tmp_path: Path, what: str, capsys) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    refused(run, [what, "--out", there], "exists; name another file, or say --overwrite", capsys=capsys)
    refused(run, [what, "--out", tmp_path / "no/out.jsonl"], "does not exist; make it", capsys=capsys)
    assert export(run, what, "--out", there, "--overwrite") == 0 and there.read_text() != "mine"


@pytest.mark.parametrize("what", ["doubtful", "data", "annotators"])
def test_what_is_read_is_never_replaced(run: Run, what: str, capsys) -> None:
    train = Path(training_files(run)[0])
    for read in (train, run.folder / "annotators.csv"):
        refused(run, [what, "--out", read, "--overwrite"], "is read too, and would be lost", capsys=capsys)


def test_bad_settings(run: Run, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    refused(run, ["data", "--threshold", "1.5", "--out", out], "--threshold must be a probability", capsys=capsys)
    refused(run, ["doubtful", "--limit", "0", "--out", out], "--limit must be 1 or more", capsys=capsys)
    refused(run, ["doubtful", "--threshold", "0", "--out", out], "less likely than 0 to be right", capsys=capsys)
    refused(run, ["data", "--out", tmp_path / "out.txt"], "the name must end in .jsonl", capsys=capsys)
    refused(run, ["data", "--data", tmp_path / "none.jsonl", "--out", out], "does not exist", capsys=capsys)


def test_bad_runs(run: Run, tmp_path: Path, capsys) -> None:
    assert main(["export", str(tmp_path / "none"), "data", "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    plain = tmp_path / "plain"
    shutil.copytree(run.folder, plain)
    config = (plain / "config.yaml").read_text()
    (plain / "config.yaml").write_text(config.replace("    enabled: true\n", "    enabled: false\n"))
    assert main(["export", str(plain), "data", "--out", str(tmp_path / "o.jsonl")]) == 2
    assert "has judged no label" in capsys.readouterr().err and not (tmp_path / "o.jsonl").exists()


def test_help_shows_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0 and "nemo-rpo export results/" in capsys.readouterr().out
