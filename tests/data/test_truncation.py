import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_rpo.data.truncation import fits, truncate_prompt

BOS = 1


@pytest.mark.parametrize(
    ("room", "bos_id", "kept"),
    [
        (6, BOS, [1, 5, 6, 7, 8]),
        (5, BOS, [1, 5, 6, 7, 8]),
        (4, BOS, [1, 6, 7, 8]),
        (2, BOS, [1, 8]),
        (1, BOS, [1]),
        (4, None, [5, 6, 7, 8]),
        (1, None, [8]),
        (4, 99, [5, 6, 7, 8]),
    ],
)
def test_the_left_of_the_prompt_goes_and_bos_stays(room, bos_id, kept):
    prompt = np.array([1, 5, 6, 7, 8], dtype=np.int32)
    assert truncate_prompt(prompt, longest_response=10, seq_length=10 + room, bos_id=bos_id).tolist() == kept


@given(
    prompt=st.lists(st.integers(2, 50), min_size=1, max_size=30),
    longest=st.integers(1, 30),
    seq_length=st.integers(2, 40),
    bos=st.booleans(),
)
def test_what_is_kept_fills_the_room_with_the_end_of_the_prompt(prompt, longest, seq_length, bos):
    ids = np.array([BOS, *prompt] if bos else prompt, dtype=np.int32)
    if not fits(longest, seq_length):
        return
    kept = truncate_prompt(ids, longest, seq_length, BOS if bos else None)
    assert len(kept) == min(len(ids), seq_length - longest) >= 1
    assert not bos or kept[0] == BOS
    tail = kept[1:] if bos else kept
    assert tail.tolist() == ids[len(ids) - len(tail) :].tolist()


def test_a_response_needs_a_token_to_be_predicted_from():
    assert fits(9, 10)
    assert not fits(10, 10)
