"""What of a micro-batch lies on which context-parallel rank. (That training gives the same numbers: the trajectory.)"""

from __future__ import annotations

import pytest

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
import torch

from nemo_rpo.megatron.batch.context_parallel import positions_of
from nemo_rpo.megatron.batch.responses import IGNORED, ResponseTokens

LENGTH = 16


def labels(*responses: tuple[int, int]) -> torch.Tensor:
    """A row for each response, given by its first position and the one after its last."""
    found = torch.full((len(responses), LENGTH), IGNORED)
    for row, (first, end) in enumerate(responses):
        found[row, first:end] = 100 * row + torch.arange(first, end)
    return found


def on_ranks(whole: ResponseTokens, ranks: int, rows: int) -> list[ResponseTokens]:
    return [whole.on_positions(positions_of(rank, ranks, LENGTH), LENGTH, rows) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_every_position_once_and_equally_many_early_ones(ranks: int) -> None:
    found = [positions_of(rank, ranks, LENGTH) for rank in range(ranks)]
    assert torch.cat(found).sort().values.tolist() == list(range(LENGTH))
    assert len({int(positions.sum()) for positions in found}) == 1  # of a causal mask: as many scores each


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_token_is_scored_where_its_predictor_is(ranks: int) -> None:
    """Also at the seam of two chunks, where the token itself lies on another rank."""
    whole = ResponseTokens.of_labels(labels((3, 9), (8, 16), (12, 13)))
    places = []
    for rank, part in enumerate(on_ranks(whole, ranks, rows=3)):
        position, row = positions_of(rank, ranks, LENGTH)[part.index // 3], part.index % 3
        assert part.token.tolist() == (100 * row + position + 1).tolist()
        places.append(part.share.places)
    assert torch.cat(places).sort().values.tolist() == list(range(15))


def test_sums_of_the_ranks_add_up_and_a_rank_without_tokens_has_none() -> None:
    whole = ResponseTokens.of_labels(labels((5, 7), (9, 12)))  # all predictors on the second of two ranks
    values = torch.arange(5.0, requires_grad=True)
    first, second = on_ranks(whole, 2, rows=2)
    assert first.lengths.tolist() == [0, 0] and second.lengths.tolist() == [2, 3]
    none = first.sums(values[first.share.places])
    assert none.tolist() == [0, 0]
    (none + second.sums(values[second.share.places])).sum().backward()
    assert values.grad.tolist() == [1] * 5


def test_turns_are_counted_before_they_are_split() -> None:
    whole = ResponseTokens.of_labels(labels((2, 6), (9, 14)), turn_lengths=torch.tensor([[1, 3], [5, 0]]))
    values = torch.arange(9.0)
    parts = on_ranks(whole, 2, rows=2)
    assert all(part.turns().tolist() == [2, 1] for part in parts)
    found = sum(part.turn_sums(values[part.share.places]) for part in parts)
    assert torch.equal(found, whole.turn_sums(values))


def test_one_rank_has_the_ends_of_a_response() -> None:
    whole = ResponseTokens.of_labels(labels((3, 9), (8, 16)))
    for name in ("begin", "end"):
        places = torch.stack([getattr(part, name) for part in on_ranks(whole, 2, rows=2)])
        assert ((places >= 0).sum(0) == 1).all()
        for rank in range(2):
            here = places[rank] >= 0
            position = positions_of(rank, 2, LENGTH)[places[rank][here] // 2]
            assert torch.equal(position, (getattr(whole, name) // 2)[here])
