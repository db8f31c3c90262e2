"""Reading comparisons: the ways of naming a winner, and rows that name none."""

from __future__ import annotations

import json

import pytest

from nemo_rpo.errors import DataError
from nemo_rpo.ranking import ComparisonFormat, read_comparisons


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def game(a, b, winner, **more):
    return {"model_a": a, "model_b": b, "winner": winner, **more}


def test_every_way_of_naming_a_winner(tmp_path):
    winners = ["a", "model_a", "x", "b", "model_b", "y", "tie", "draw", "Tie (bothbad)", "both_bad"]
    found = read_comparisons(write(tmp_path / "games.jsonl", [game("x", "y", winner) for winner in winners]))
    assert found.outcome.tolist() == [1, 1, 1, -1, -1, -1, 0, 0, 0, 0]
    assert found.players == ["x", "y"] and found.annotators == ["all"]


def test_players_and_annotators_do_not_depend_on_the_order_of_rows(tmp_path):
    rows = [game("z", "y", "a", annotator="w2"), game("x", "z", "b", annotator="w1"), game("y", "x", "tie")]
    one = read_comparisons(write(tmp_path / "one.jsonl", rows))
    other = read_comparisons(write(tmp_path / "other.jsonl", rows[::-1]))
    assert one.players == other.players == ["x", "y", "z"]
    assert one.annotators == other.annotators == ["all", "w1", "w2"]
    assert one.first.tolist() == other.first.tolist()[::-1] == [2, 0, 1]
    assert one.annotator.tolist() == [2, 1, 0]
    assert [values.tolist() for values in one.tally()] == [[0, 0, 2], [1, 1, 0], [1, 1, 0]]


def test_csv_with_its_own_names(tmp_path):
    path = tmp_path / "games.csv"
    path.write_text("left,right,won,judge\nx,y,a,j1\ny,x,tie,\n")
    found = read_comparisons(path, ComparisonFormat("left", "right", "won"))
    assert found.outcome.tolist() == [1, 0] and found.annotators == ["all"]
    with pytest.raises(DataError, match=r"games\.csv:3: field 'judge' is missing"):
        read_comparisons(path, ComparisonFormat("left", "right", "won", "judge"))


def test_players_whose_names_are_numbers(tmp_path):
    path = write(tmp_path / "games.jsonl", [game(1, 2, 1), game(2, 1, 1), game(1.0, 2, "2.0"), game(1, 2, "tie")])
    found = read_comparisons(path)
    assert found.players == ["1", "2"] and found.outcome.tolist() == [1, -1, -1, 0]
    table = tmp_path / "games.csv"
    table.write_text("model_a,model_b,winner\n1,2,1.0\n1.0,2,2\n")
    found = read_comparisons(table)
    assert found.players == ["1", "2"] and found.outcome.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (game("x", "y", "nobody"), "field 'winner' must be a, b or tie, or 'x' or 'y', found str 'nobody'"),
        (game("x", "y", None), "field 'winner' is null; fields seen: model_a, model_b, winner"),
        (game("x", "x", "a"), "'x' is compared with itself"),
        ({"model_a": "x", "winner": "a"}, "field 'model_b' is missing; fields seen: model_a, winner"),
        (game("x", 1.5, "a"), "field 'model_b' must be an id"),
    ],
)
def test_a_bad_row_is_named(row, message, tmp_path):
    path = write(tmp_path / "games.jsonl", [game("x", "y", "a"), row])
    with pytest.raises(DataError) as caught:
        read_comparisons(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")
