"""The surrogate judge: what it learns, that it does not judge its own training pairs, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nemo_rpo.cli import main
from nemo_rpo.errors import ConfigError
from nemo_rpo.judging.judges.surrogate_judge import Surrogate
from nemo_rpo.judging.judging_settings import SurrogateJudge, judges_of
from nemo_rpo.judging.verdicts import FIRST, SECOND, Shown


def judged_rows(pairs: int, seed: int = 0, wrong=frozenset()) -> list[dict]:
    """Of two answers of one length, the one with the longer list wins; of the pairs ``wrong`` the other one."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(pairs):
        better = int(rng.integers(2))
        points = [int(rng.integers(3, 7) if side == better else rng.integers(0, 2)) for side in (0, 1)]
        texts = [f"{i:03}\n" + "- w\n" * n + "x y\n" * (8 - n) for n in points]
        vote = {"annotator": "expensive", "vote": "ab"[better if i not in wrong else 1 - better]}
        answers = {"response_a": texts[0], "response_b": texts[1]}
        rows.append({"pair_id": f"q{i}", "prompt": f"p{i}", **answers, "votes": [vote]})
    return rows


def judge(tmp_path, rows, **settings) -> Surrogate:
    path = tmp_path / "judged.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    [checked] = judges_of([{"name": "cheap", "kind": "surrogate", "judged": path.name, **settings}], tmp_path)
    assert isinstance(checked, SurrogateJudge)
    return Surrogate(checked, "judges[0]")


def asked(row: dict, turned: bool = False) -> Shown:
    texts = (row["response_b"], row["response_a"]) if turned else (row["response_a"], row["response_b"])
    return Shown(row["pair_id"], row["prompt"], *texts, "", row)


def test_learns_from_judged_pairs_and_answers_the_same_when_turned(tmp_path):
    cheap = judge(tmp_path, judged_rows(60))
    new = judged_rows(40, seed=1)
    new = [{**row, "pair_id": f"n{i}", "prompt": f"new {i}"} for i, row in enumerate(new)]
    said = [v.said for v in cheap.judge(map(asked, new))]
    assert said == [FIRST if row["votes"][0]["vote"] == "a" else SECOND for row in new]
    turned = list(cheap.judge([asked(row, turned=True) for row in new]))
    straight = list(cheap.judge(map(asked, new)))
    np.testing.assert_allclose([v.p_first for v in turned], [1 - v.p_first for v in straight])


def test_verdicts_on_its_own_training_pairs_owe_nothing_to_their_labels(tmp_path):
    """A pair judged the other way keeps its verdict: other pairs decide."""
    rows, wrong = judged_rows(60), {7, 31}
    first = list(judge(tmp_path, rows).judge([asked(rows[i]) for i in wrong]))
    second = list(judge(tmp_path, judged_rows(60, wrong=wrong)).judge([asked(rows[i]) for i in wrong]))
    assert [v.said for v in first] == [v.said for v in second]
    assert all(json.loads(v.raw)["held_out"] for v in [*first, *second])


def test_declared_columns_and_who_judged(tmp_path):
    rows = judged_rows(60)
    for i, row in enumerate(rows):
        row["votes"].append({"annotator": "other", "vote": "ab"[i % 2]})
        row["grade_a"], row["grade_b"] = (0, 1) if i % 2 else (1, 0)
    cheap = judge(tmp_path, rows, by="other", columns=["grade"], features=["lists"])
    [verdict] = cheap.judge([Shown("x", "new", "u", "v", "", {"response_a": "u", "grade_a": 2, "grade_b": 0})])
    assert verdict.said == FIRST
    with pytest.raises(ConfigError, match="no column 'grade'"):
        list(cheap.judge([Shown("x", "new", "u", "v", "", {})]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "nobody"}, "0 pairs judged by nobody, and a surrogate takes 20"),
        ({"fewest": 100}, "60 pairs judged, and a surrogate takes 100"),
        ({"features": ["beauty"]}, "there is no feature 'beauty'"),
        ({"features": ["code"]}, "do not differ in any property"),
        ({"judged": "none.jsonl"}, "judged must be a file of judged pairs"),
    ],
)
def test_one_line_errors(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        judge(tmp_path, judged_rows(60), **change)


def test_is_one_more_annotator_of_the_command(tmp_path, capsys):
    """Judged pairs stay those of the expensive judge; the surrogate votes on all, and its reliability is known."""
    rng, rows = np.random.default_rng(3), judged_rows(80)
    labelled = []
    for row in rows:
        said = row["votes"][0]["vote"]
        votes = [
            {"annotator": f"w{k}", "vote": said if rng.random() < 0.8 else "ba"["ab".index(said)]} for k in range(4)
        ]
        labelled.append({**row, "votes": votes})
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, rows[:40])))
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    (tmp_path / "judges.yaml").write_text("judges: [{name: cheap, kind: surrogate, judged: judged.jsonl}]")
    out = tmp_path / "out"
    asked = ["judge", str(tmp_path / "pairs.jsonl"), "--judges", str(tmp_path / "judges.yaml"), "--out", str(out)]
    assert main([*asked, "--json"]) == 0
    found = {row["annotator"]: row for row in json.loads(capsys.readouterr().out)["annotators"]}
    assert found["cheap"]["labels"] == 80 and found["cheap"]["reliability"] > 0.85
    assert len((out / "votes.jsonl").read_text().splitlines()) == 80
