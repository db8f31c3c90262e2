import os
from pathlib import Path

import pytest
import torch

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.fit.baselines import crowd_kit_frame, dawid_skene, majority, one_coin

from .worlds import make_crowd

DATA = Path(os.environ.get("NEMO_RPO_DATA", Path(__file__).parents[3] / "shared" / "data")) / "crowd_gold"


@pytest.fixture(scope="module")
def crowd():
    return make_crowd(annotators=30, labels=6000, votes_per_pair=5, population=(8.0, 2.0), seed=1)


def accuracy(w: torch.Tensor, truth: torch.Tensor) -> float:
    return ((w > 0.5) == truth).double().mean().item()


def test_majority_is_the_share():
    votes = Votes(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[1, 1, -1], [1, -1, 0]]))
    found = majority(votes, 4)
    torch.testing.assert_close(found.w, torch.tensor([2 / 3, 1 / 2], dtype=torch.float64), rtol=1e-6, atol=0)
    expected = torch.tensor([(2 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 2) / 2, 1 / 3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(found.eta, expected, rtol=1e-6, atol=0)


def test_one_coin_beats_majority_where_annotators_differ(crowd):
    found, counted = one_coin(crowd.votes, 30, EMSettings()), majority(crowd.votes, 30)
    assert accuracy(found.w, crowd.better) > accuracy(counted.w, crowd.better)
    assert (found.eta - crowd.eta).abs().mean() < 0.7 * (counted.eta - crowd.eta).abs().mean()
    assert found.share_chosen == 0.5


def test_one_coin_learns_the_class_prior():
    crowd = make_crowd(annotators=20, labels=6000, votes_per_pair=4, population=(8.0, 2.0), seed=2)
    kept = crowd.better | (torch.rand(len(crowd.better), generator=torch.Generator().manual_seed(0)) < 0.3)
    votes = Votes(crowd.votes.annotator[kept], crowd.votes.sign[kept])
    found = one_coin(votes, 20, EMSettings(), learn_share=True)
    assert found.share_chosen == pytest.approx(crowd.better[kept].double().mean().item(), abs=0.02)


def test_link_tau_is_about_margins_and_not_about_the_class_prior(crowd):
    plain = one_coin(crowd.votes, 30, EMSettings(), learn_share=True)
    tempered = one_coin(crowd.votes, 30, EMSettings(link_tau=10.0), learn_share=True)
    assert plain.share_chosen == tempered.share_chosen


def test_dawid_skene_agrees_where_errors_are_symmetric(crowd):
    pytest.importorskip("crowdkit", reason="crowd-kit is an extra: pip install 'nemo-rpo[crowd]'")
    found = dawid_skene(crowd.votes, 30)
    assert accuracy(found.w, crowd.better) == pytest.approx(
        accuracy(one_coin(crowd.votes, 30, EMSettings()).w, crowd.better), abs=0.02
    )
    assert (found.eta - crowd.eta).abs().mean() < 0.04


def test_crowd_kit_gets_signed_votes_only():
    pytest.importorskip("crowdkit", reason="crowd-kit is an extra: pip install 'nemo-rpo[crowd]'")
    frame = crowd_kit_frame(Votes(torch.tensor([[3, 1], [2, 0]]), torch.tensor([[1, 0], [-1, 1]])))
    assert frame.values.tolist() == [[0, 3, True], [1, 2, False], [1, 0, True]]


@pytest.mark.parametrize(
    ("name", "majority_accuracy", "published_one_coin"),
    [("rte", 0.897, 0.925), ("sp", 0.886, 0.917), ("product", 0.897, 0.908), ("d_sentiment", 0.933, 0.949)],
)
def test_real_crowds(name, majority_accuracy, published_one_coin):
    """Not below majority, and within .01 of crowd-kit 1.4.2's one-coin EM (both columns measured on these files)."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent; NEMO_RPO_DATA names the folder with crowd_gold")
    votes, workers, gold = read_crowd(DATA, name)
    known = gold >= 0
    counted = majority(votes, workers).w
    found = one_coin(votes, workers, EMSettings(), learn_share=True).w
    half = torch.where(counted == 0.5, 0.5, ((counted > 0.5) == (gold == 1)).double())
    assert half[known].mean().item() == pytest.approx(majority_accuracy, abs=1e-3)
    mine = accuracy(found[known], gold[known] == 1)
    assert mine >= half[known].mean().item()
    assert mine == pytest.approx(published_one_coin, abs=0.01)


def read_crowd(folder: Path, name: str) -> tuple[Votes, int, torch.Tensor]:
    labels = [line.split(",") for line in (folder / f"{name}_label.csv").read_text().splitlines()[1:]]
    items = {item: i for i, item in enumerate(dict.fromkeys(row[0] for row in labels))}
    workers = {worker: i for i, worker in enumerate(dict.fromkeys(row[1] for row in labels))}
    by_item: list[list[tuple[int, int]]] = [[] for _ in items]
    for item, worker, label in labels:
        by_item[items[item]].append((workers[worker], 1 if label == "1" else -1))
    width = max(map(len, by_item))
    padded = torch.tensor([votes + [(0, 0)] * (width - len(votes)) for votes in by_item])
    gold = torch.full((len(items),), -1)
    for line in (folder / f"{name}_truth.csv").read_text().splitlines()[1:]:
        item, truth = line.split(",")
        if item in items:
            gold[items[item]] = int(truth)
    return Votes(padded[..., 0], padded[..., 1]), len(workers), gold
