import torch

from nemo_rpo.em import Votes


def test_single_label_says_chosen():
    votes = Votes.single(torch.tensor([3, 1, 1]))
    assert votes.annotator.tolist() == [[3], [1], [1]]
    assert votes.share().tolist() == [1.0, 1.0, 1.0]
    assert votes.has_evidence().all()


def test_share_ignores_ties_and_padding():
    sign = torch.tensor([[1, 1, 1, -1], [1, 0, -1, 0], [0, 0, 0, 0], [-1, -1, 0, 0]])
    votes = Votes(torch.zeros_like(sign), sign)
    assert votes.share().tolist() == [0.75, 0.5, 0.5, 0.0]
    assert votes.has_evidence().tolist() == [True, True, False, True]
