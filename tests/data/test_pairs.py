"""Which rows are one pair, which response is called chosen, and what happens to the columns."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from nemo_rpo.data.columns import ALIASES
from nemo_rpo.data.pairs import PairLedger
from nemo_rpo.data.rows import NOTHING_ELSE, PreferenceRow, Vote, VoteDetails
from nemo_rpo.errors import DataError

_numbers = itertools.count(1)


def row(chosen, rejected, *votes, prompt="p", pair_id=None, gold=None, **columns):
    """A row whose votes are (annotator, sign) or a bare annotator who prefers ``chosen``."""
    cast = tuple(Vote(*vote) if isinstance(vote, tuple) else Vote(vote, 1) for vote in votes or (None,))
    return PreferenceRow("f.jsonl", next(_numbers), pair_id, prompt, chosen, rejected, cast, columns, gold)


def close(rows, group_votes=True, keep_ties=False):
    ledger = PairLedger(group_votes, keep_ties)
    new = [r for r in rows if ledger.add(r) is not None]
    return ledger.close(), new


def votes_of(table, i):
    span = slice(table.vote_start[i], table.vote_start[i + 1])
    ids = [table.annotators.ids[k] for k in table.annotator[span]]
    return list(zip(ids, table.sign[span].tolist(), strict=True))


def test_rows_of_one_pair_meet_in_either_order():
    table, new = close([row("a", "b", "w1"), row("b", "a", "w2"), row("a", "b", "w3"), row("a", "b", "w4", prompt="q")])
    assert len(new) == len(table) == 2
    assert votes_of(table, 0) == [("w1", 1), ("w2", -1), ("w3", 1)]
    assert votes_of(table, 1) == [("w4", 1)]
    assert table.turned.tolist() == [False, False]


def test_chosen_is_the_side_with_more_votes_and_signs_follow_it():
    table, _ = close([row("a", "b", "w1", gold=1), row("b", "a", "w2"), row("b", "a", "w3")])
    assert table.turned.tolist() == [True]
    assert votes_of(table, 0) == [("w1", -1), ("w2", 1), ("w3", 1)]
    assert table.gold.tolist() == [-1]


def test_equal_votes_leave_the_recorded_order():
    table, _ = close([row("a", "b", ("w1", -1), ("w2", 1))])
    assert table.turned.tolist() == [False]
    assert votes_of(table, 0) == [("w1", -1), ("w2", 1)]


def test_the_order_shown_turns_with_the_pair():
    def shown(annotator, sign, first):
        return Vote(annotator, sign, VoteDetails(shown_first=first, strength=2.0, family=f"of {annotator}"))

    rows = [row("a", "b", gold=1), row("b", "a"), row("a", "b")]
    votes = [shown("w1", 1, 1), shown("w2", 1, 1), shown("w3", -1, -1)]  # a, b, b preferred; a, b, b shown first
    rows = [replace(of, votes=(vote,)) for of, vote in zip(rows, votes, strict=True)]
    rows[1] = replace(rows[1], topic="law")
    table, _ = close(rows)
    assert table.turned.tolist() == [True], "two of three prefer b"
    assert table.sign.tolist() == [-1, 1, 1]
    assert table.details.columns["shown_first"].tolist() == [-1, 1, 1], "relative to chosen, which is b"
    assert table.details.of(0) == votes[0].details.turned()
    assert table.details.family_of(table.annotator, 3) == ["of w1", "of w2", "of w3"]
    assert [table.topics[i] for i in table.topic] == ["law"]
    apart, _ = close(rows, group_votes=False)
    assert apart.sign.tolist() == [1, 1, 1] and apart.details.columns["shown_first"].tolist() == [1, 1, 1]
    assert apart.topic.tolist() == [0, 0, 0]


def test_columns_of_details_exist_where_some_vote_has_them():
    table, _ = close([row("a", "b", "w1"), row("a", "c", ("w2", 0))])
    assert table.details.columns == {} and table.details.of(0) is NOTHING_ELSE
    known = Vote("w3", 1, VoteDetails(seconds=3.5))
    table, _ = close([row("a", "b", ("w2", 0)), row("a", "b", "w1"), replace(row("a", "b"), votes=(known,))])
    np.testing.assert_array_equal(table.details.columns["seconds"], [np.nan, 3.5])
    assert table.details.columns.keys() == {"seconds"}


def test_ties_are_counted_and_carry_no_vote():
    table, _ = close([row("a", "b", ("w1", 0), ("w2", -1)), row("c", "d", ("w1", 0))])
    assert (table.votes, table.ties) == (3, 2)
    assert np.diff(table.vote_start).tolist() == [1, 0]
    assert table.annotators.labels.tolist() == [0, 1]


def test_one_annotator_who_contradicts_himself_is_heard_twice():
    table, _ = close([row("a", "b", "w1"), row("b", "a", "w1")])
    assert votes_of(table, 0) == [("w1", 1), ("w1", -1)]


def test_pair_ids_decide_where_they_are_given():
    table, _ = close([row("a", "b", "w1", pair_id="x"), row("a", "b", "w1", pair_id="y"), row("b", "a", pair_id="x")])
    assert table.pair_id == ["x", "y"]
    assert np.diff(table.vote_start).tolist() == [2, 1]


def test_a_pair_without_an_id_gets_the_same_one_wherever_and_however_it_stands():
    first, _ = close([row("z", "y"), row("a", "b")])
    second, _ = close([row("b", "a")])
    assert first.pair_id[1] == second.pair_id[0] != first.pair_id[0]
    message = [{"role": "assistant", "content": "a"}]
    third, _ = close([row(message, "b")])
    assert third.pair_id != second.pair_id


def test_one_pair_id_for_two_texts_is_an_error_that_names_both_rows():
    rows = [row("a", "b", pair_id="x"), row("a", "c", pair_id="x")]
    with pytest.raises(DataError, match=rf"f.jsonl:{rows[1].row}: pair_id 'x' .* at f.jsonl:{rows[0].row}"):
        close(rows)


def test_contradicting_gold_is_an_error():
    with pytest.raises(DataError, match="opposite gold"):
        close([row("a", "b", gold=1), row("b", "a", gold=1)])


def test_ungrouped_every_signed_vote_is_a_pair_turned_its_way():
    rows = [row("a", "b", ("w1", 1), ("w2", -1), ("w3", 0)), row("c", "d", ("w1", 0)), row("b", "a", "w4", gold=1)]
    table, new = close(rows, group_votes=False)
    assert len(new) == 2, "the two rows of one pair share their text"
    assert table.text.tolist() == [0, 0, 1, 0]
    assert table.turned.tolist() == [False, True, False, True]
    assert [votes_of(table, i) for i in range(4)] == [[("w1", 1)], [("w2", 1)], [], [("w4", 1)]]
    assert table.gold.tolist() == [-1, 1, 0, 1]
    assert table.source[:, 1].tolist() == [rows[0].row, rows[0].row, rows[1].row, rows[2].row]


def test_a_tie_is_a_pair_that_nobody_decides():
    rows = [row("a", "b", ("w1", 0), ("w2", -1)), row("c", "d", ("w1", 0)), row("e", "f", ("w1", 1), ("w2", -1))]
    unlabelled = PreferenceRow("f.jsonl", next(_numbers), None, "p", "g", "h", ())
    table, _ = close([*rows, unlabelled])
    assert table.tie.tolist() == [False, True, False, False]
    assert [votes_of(table, i) for i in (0, 1)] == [[("w2", 1)], []]


def test_ungrouped_every_tie_may_be_a_pair_too():
    rows = [row("a", "b", ("w1", 0), ("w2", -1), ("w3", 0)), row("c", "d", ("w1", 0))]
    table, _ = close(rows, group_votes=False, keep_ties=True)
    assert table.text.tolist() == [0, 0, 0, 1]
    assert table.tie.tolist() == [True, False, True, True]
    assert [votes_of(table, i) for i in range(4)] == [[], [("w2", 1)], [], []]
    assert table.turned.tolist() == [False, True, False, False]


def test_columns_turn_with_the_pair():
    columns = {"chosen_reward": 3.0, "rejected_reward": 1.0, "margin": 2.0, "win_rate": 0.75, "strength": 5.0}
    table, _ = close([row("a", "b", ("w1", -1), **columns), row("c", "d", "w1", strength=1.0)])
    got = {name: values[0] for name, values in table.columns.items()}
    assert got == {"chosen_reward": 1.0, "rejected_reward": 3.0, "margin": -2.0, "win_rate": 0.25, "strength": 5.0}
    assert np.isnan(table.columns["margin"][1])


def test_grouped_columns_are_means_in_one_orientation():
    table, _ = close([row("a", "b", "w1", margin=2.0), row("b", "a", "w2", margin=-4.0), row("a", "b", "w3")])
    assert table.columns["margin"].tolist() == [3.0]


def test_a_lone_reward_changes_sides_with_its_response():
    table, _ = close([row("a", "b", ("w1", -1), chosen_reward=3.0)])
    assert table.columns["rejected_reward"].tolist() == [3.0]
    assert np.isnan(table.columns["chosen_reward"]).all()


def test_what_is_said_of_a_response_goes_with_it():
    """Win rates and preference scores against the previous iterate, under either spelling of the files."""
    said = {"win_rate_chosen": 0.9, "rejected_win_rate": 0.2}
    said |= {"preference_score_chosen": 2.0, "chosen_preference_score": 2.0, "rejected_preference_score": -1.5}
    named = {ALIASES[name]: value for name, value in said.items()}
    table, _ = close([row("a", "b", ("w1", -1), **named)])
    got = {name: values[0] for name, values in table.columns.items()}
    assert got == {
        "chosen_win_rate": np.float32(0.2),
        "rejected_win_rate": np.float32(0.9),
        "chosen_preference_score": -1.5,
        "rejected_preference_score": 2.0,
    }


def test_annotators_are_sorted_whatever_the_order_of_rows():
    rows = [row(f"a{i}", "b", f"w{i % 7}") for i in range(30)]
    tables = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        tables.append(close(rows)[0].annotators)
    assert tables[0].ids == sorted(tables[0].ids) == tables[1].ids == tables[2].ids
    assert tables[0].labels.tolist() == tables[2].labels.tolist()


def test_votes_without_ids_share_one_annotator():
    table, _ = close([row("a", "b"), row("c", "d"), row("e", "f", "w1")])
    assert table.annotators.ids == ["all", "w1"]
    assert table.without_annotator == 2


def test_against_a_plain_grouping_of_random_votes():
    rng = random.Random(0)
    rows = []
    for _ in range(400):
        sides = [f"r{rng.randrange(4)}", f"s{rng.randrange(4)}"]
        rng.shuffle(sides)
        rows.append(row(*sides, (f"w{rng.randrange(5)}", rng.choice([-1, 0, 1])), prompt=f"p{rng.randrange(3)}"))
    table, new = close(rows)
    for i, first in enumerate(new):
        expected = []
        for r in rows:
            if r.prompt == first.prompt and {r.chosen, r.rejected} == {first.chosen, first.rejected}:
                annotator, sign, _ = r.votes[0]
                expected.append((annotator, sign if r.chosen == first.chosen else -sign))
        turn = -1 if sum(sign for _, sign in expected) < 0 else 1
        assert votes_of(table, i) == [(annotator, sign * turn) for annotator, sign in expected if sign]
        assert bool(table.turned[i]) is (turn < 0)
