"""Data, settings, checkpoint and optimizer around the model, and what is said when something does not fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from nemo_aligner.data.nlp.datasets import DPOPackedDataset
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from omegaconf import OmegaConf

from nemo_rpo.config.loss import pair_step
from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.em import Collectives, Votes
from nemo_rpo.errors import CheckpointError, ConfigError, DataError
from nemo_rpo.integrations.labelled_pairs import LabelledPairs
from nemo_rpo.integrations.nemo_aligner import (
    AnnotatorCollate,
    MegatronGPTRPOModel,
    RPOTrainer,
    TrainingLabels,
    annotated_datasets,
    rpo_settings,
    training_labels,
)
from nemo_rpo.integrations.nemo_aligner import model as aligner_model
from nemo_rpo.integrations.nemo_aligner.aligner_settings import base_loss, dpo_settings
from nemo_rpo.integrations.nemo_aligner.trainer import _Watched
from nemo_rpo.megatron.step.metrics import StepMetrics

from . import world


def table(*names: str) -> AnnotatorTable:
    return AnnotatorTable([Annotator(name, 1, f"train.jsonl:{i}") for i, name in enumerate(names, start=1)])


def section(files: list[Any], rpo: dict[str, Any] | None = None, **data: Any) -> Any:
    """A recipe's section ``model``."""
    splits = {"train": files, "validation": files[:1], "test": files[:1]}
    data = {"data_prefix": splits, "data_impl": "jsonl", "splits_string": None, "append_eod": True} | data
    return OmegaConf.create({"data": data, "rpo": rpo, "dpo": {"ref_policy_kl_penalty": 0.5}})


def labels_of(*names: str, mark: str = "data") -> TrainingLabels:
    """Of ``train.jsonl``, which has a pair of each annotator."""
    pairs = LabelledPairs()
    for row, name in enumerate(names, start=1):
        pairs.add(f"train.jsonl:{row}", [(name, 1)])
    return TrainingLabels(pairs, pairs.table(), {"train.jsonl": 0}, mark)


class Letters:
    """A tokenizer of one token a letter."""

    eos_id = 0

    def text_to_ids(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def datasets(cfg: Any) -> Any:
    data = cfg.data
    return annotated_datasets(
        cfg=cfg,
        data_prefix=data.data_prefix,
        data_impl=data.data_impl,
        splits_string=None,
        train_valid_test_num_samples=[-1, -1, -1],
        seq_length=64,
        seed=1,
        tokenizer=Letters(),
    )


def write(path: Path, *changes: dict[str, Any]) -> Path:
    made = world.rows(len(changes), seed=3)
    for row, change in zip(made, changes, strict=True):
        row |= {"prompt": "ab", "chosen_response": "cd", "rejected_response": "efg"} | change
        if row["annotator"] is ...:
            del row["annotator"]
    world.tiny_world.write_rows(path, made)
    return path


# --- data


def test_every_row_brings_its_annotator(tmp_path):
    path = write(tmp_path / "train.jsonl", {"annotator": "w1"}, {"annotator": 7}, {"annotator": "w1"})
    train, _, _ = datasets(section([str(path)]))
    assert [row["annotator"] for row in (train[i] for i in range(3))] == ["w1", "7", "w1"]
    found = training_labels(section([str(path)]))
    assert found.annotators.ids == ["7", "w1"]
    assert found.annotators.labels.tolist() == [1, 2]
    assert found.votes(slice(0, 3)).annotator.tolist() == [[1], [0], [1]]


def test_weighted_files_are_one_set_of_pairs(tmp_path):
    one = write(tmp_path / "one.jsonl", {"annotator": "b"}, {"annotator": "c"})
    two = write(tmp_path / "two.jsonl", {"annotator": "a"})
    cfg = section([0.3, str(one), 0.7, str(two)])
    found = training_labels(cfg)
    assert found.annotators.ids == ["a", "b", "c"]
    assert found.votes(slice(0, 3)).annotator.tolist() == [[1], [2], [0]]
    assert found.first == {str(one): 0, str(two): 2}
    twice = training_labels(section([0.3, str(one), 0.3, str(two), 0.4, str(one)]))
    assert (twice.first, len(twice.pairs), twice.annotators) == (found.first, 3, found.annotators)


def test_labels_know_their_pairs_by_content(tmp_path):
    one, again = (write(tmp_path / name, {}, {}) for name in ("one.jsonl", "again.jsonl"))
    other = write(tmp_path / "other.jsonl", {}, {"chosen_response": "changed"})
    marks = [training_labels(section([str(path)])).fingerprint for path in (one, again, other)]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize(
    ("change", "rpo", "message"),
    [
        ({"annotator": None}, None, r"train\.jsonl:2: field 'annotator' is null"),
        ({"annotator": ""}, None, r"train\.jsonl:2: field 'annotator' is blank"),
        ({"annotator": ...}, None, r"train\.jsonl:2: the row has no field 'annotator'.*model\.rpo\.annotator_key"),
        ({"annotator": [1]}, None, r"train\.jsonl:2: field 'annotator' must be an id"),
        ({}, {"annotator_key": "rater"}, r"train\.jsonl:1: the row has no field 'rater'"),
    ],
)
def test_a_row_that_names_nobody_is_named(change, rpo, message, tmp_path):
    path = write(tmp_path / "train.jsonl", {"annotator": "w1"}, {"annotator": "w2"} | change)
    with pytest.raises(DataError, match=message) as caught:
        training_labels(section([str(path)], rpo))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rpo", [{"annotator_key": None}, {"enabled": False}])
def test_data_without_annotators_has_one(rpo, tmp_path):
    cfg = section([str(write(tmp_path / "train.jsonl", {"annotator": ...}, {"annotator": ...}))], rpo)
    found = training_labels(cfg).annotators
    assert (found.ids, found.labels.tolist()) == (["all"], [2])
    assert datasets(cfg)[0][0]["annotator"] == "all"


def test_other_formats_are_refused(tmp_path):
    path = write(tmp_path / "train.jsonl", {"annotator": "w"})
    with pytest.raises(ConfigError, match=r"model\.data\.data_impl=mmap carries no annotators"):
        datasets(section([str(path)], data_impl="mmap"))


def labels(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_the_collator_knows_pairs_without_evidence():
    blank = [-100, -100, -100]
    collated = {
        "chosen_labels": labels([-100, 5, 6], blank, [-100, 5, 6], [-100, 5, 6]),
        "rejected_labels": labels([-100, 5, 7], blank, [-100, 5, 6], [-100, 7, -100]),
    }
    collate = AnnotatorCollate(lambda batch, **kwargs: collated, labels_of("a", "b"))
    rows = [{"annotator": name, "place": ("train.jsonl", i)} for i, name in enumerate(("b", "a", "a", "stranger"))]
    batch = collate(rows, pad_length_to_multiple_of=8)
    assert batch["valid"].tolist() == [True, False, False, True]
    assert batch["annotator"].tolist() == [1, 0, 0, 2]
    assert batch["pair_index"].tolist() == [0, 1, 2, 3]
    elsewhere = collate([{"annotator": None, "place": ("validation.jsonl", 1)}] * 4)
    assert elsewhere["annotator"].tolist() == [2, 2, 2, 2]
    assert elsewhere["pair_index"].tolist() == [-1, -1, -1, -1]
    with pytest.raises(DataError, match="build the data sets with annotated_datasets"):
        collate([{}])


# --- packs


def packs() -> list[dict[str, Any]]:
    """Upstream's format, of packs with two pairs and with one; every sequence is a prompt token and its response."""

    def pack(*sequences: list[int], **more: Any) -> dict[str, Any]:
        ids = [token for sequence in sequences for token in sequence]
        ends = np.cumsum([0, *map(len, sequences)]).tolist()
        lengths = [len(sequence) for sequence in sequences]
        rewards = [2.0, 1.0] * (len(sequences) // 2)
        return {"input_ids": ids, "labels": ids, "lengths": lengths, "reward": rewards, "seq_boundaries": ends, **more}

    first = pack([1, 11, 12], [1, 13], [2, 14, 15, 16], [2, 17, 18], annotator=["w2", "w1"])
    return [first, pack([3, 11], [3, 12, 13], annotator=["w1"])]


def test_packs_list_an_annotator_a_pair(tmp_path):
    path = tmp_path / "packed.npy"
    np.save(path, np.array(packs(), dtype=object))
    cfg = section([str(path)], data_impl="packed_jsonl")
    found = training_labels(cfg)
    assert (found.annotators.ids, found.annotators.labels.tolist()) == (["w1", "w2"], [2, 1])
    assert found.votes(slice(0, 3)).annotator.tolist() == [[1], [0], [0]]
    train, _, _ = datasets(cfg)
    assert isinstance(train, DPOPackedDataset)
    collate = AnnotatorCollate(train.global_collate_fn, found)
    batch = collate([train[0], train[1]], eos_id=0)
    assert batch["annotator"].tolist() == [[1, 0], [0, 0]]
    assert batch["valid"].tolist() == [[True, True], [True, False]]
    assert batch["pair_index"].tolist() == [[0, 1], [2, -1]]
    assert collate([train[1]], eos_id=0)["pair_index"].tolist() == [[2]]
    broken = packs()
    broken[1]["annotator"] = []
    np.save(path, np.array(broken, dtype=object))
    with pytest.raises(DataError, match=r"packed\.npy:2: the pack of 1 pairs names 0 annotators in its field"):
        training_labels(cfg)


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    """No process group, and one rank that holds all pairs."""
    monkeypatch.setattr("nemo_rpo.megatron.parallel.data_parallel_rank", lambda: 0)
    monkeypatch.setattr("nemo_rpo.megatron.parallel.data_parallel_size", lambda: 1)
    monkeypatch.setattr(aligner_model, "COLLECTIVES", Collectives())


def bare(rpo: dict[str, Any] | None = None) -> MegatronGPTRPOModel:
    """The model as far as a loss needs it: no weights, no process group."""
    cfg = section(["none"], {"estimator": "ema"} | (rpo or {}))
    model = object.__new__(MegatronGPTRPOModel)
    torch.nn.Module.__init__(model)
    model.base_loss, model.rpo = base_loss(cfg), rpo_settings(cfg)
    model.pair_step = pair_step(model.base_loss, dpo_settings(cfg), model.rpo)
    model._scale, model.restored = torch.tensor(0.5), None
    model.step_metrics = StepMetrics(model.base_loss.reduction, torch.device("cpu"))
    model.connect_labels(labels_of("w1", "w2"))
    return model


@pytest.fixture
def one_context_rank(monkeypatch):
    from nemo_aligner.utils import parallel_state as upstreams

    monkeypatch.setattr(upstreams, "get_context_parallel_world_size", lambda: 1)


def test_a_packed_micro_batch_has_the_loss_of_its_pairs(one_context_rank):
    """Attention over packs is Transformer Engine's and needs a GPU; what follows from the log-probs does not."""
    from nemo_rpo.integrations.nemo_aligner.model import _Labels

    torch.manual_seed(0)
    tokens = [[-100, 11], [13, -100], [-100, 14, 15], [-100, 17]]  # chosen and rejected in turn, shifted
    logps, reference = ([torch.randn(len(sequence)) for sequence in tokens] for _ in range(2))
    ends = torch.tensor([0, *np.cumsum([len(sequence) for sequence in tokens])], dtype=torch.int32)
    rewards = torch.tensor([[3.0, 1.0, 2.0, 0.5, DPOPackedDataset.REWARDS_PAD_ID, DPOPackedDataset.REWARDS_PAD_ID]])
    annotator, valid, pairs = torch.tensor([1, 0, 0]), torch.tensor([True, True, False]), torch.tensor([0, 1, -1])
    for name in ("dpo", "rpo_sq"):
        packed, padded = bare({"base_loss": name}), bare({"base_loss": name})
        packed._labels = padded._labels = _Labels(annotator, valid, pairs)
        row = [torch.cat(columns)[None] for columns in (logps, reference)]
        loss, _ = packed.loss_func(*row, torch.tensor([[label for of in tokens for label in of]]), rewards, ends)
        order = [0, 2, 1, 3]
        fill = torch.nn.utils.rnn.pad_sequence
        rows = [fill([of[i] for i in order], batch_first=True) for of in (logps, reference)]
        targets = fill([torch.tensor(tokens[i]) for i in order], batch_first=True, padding_value=-100)
        padded._labels = _Labels(annotator[:2], valid[:2], pairs[:2])
        expected, _ = padded.loss_func(*rows, targets, rewards[0, order])
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(packed.em.pending, padded.em.pending)
        assert packed.em.pending[1].tolist() == [1, 1]


def test_margins_of_packs_reach_the_buffer(one_context_rank, monkeypatch):
    """A rank whose packs hold fewer pairs than another's fills its rows up; what is no pair leaves no margin."""
    from nemo_rpo.integrations.nemo_aligner.model import _gather_rows, _Labels

    monkeypatch.setattr(parallel_state, "get_data_parallel_world_size", lambda: 2)
    other = torch.tensor([[1, 0, 0]] + [[-1, -1, -1]] * 3, dtype=torch.int32)  # Δ = 0 of pair 1, and nothing
    monkeypatch.setattr(aligner_model, "gather_step_rows", lambda rows, pairs: torch.cat((rows, other))[:pairs])
    model = bare({"estimator": "buffer"})
    model._labels = _Labels(torch.tensor([0, 0]), torch.tensor([True, False]), torch.tensor([0, -1]))
    policy, targets = torch.tensor([[1.0, 0.5, 0.25, 9.0]]), torch.tensor([[7, 8, 7, -100]])  # two, one, and padding
    ends, rewards = torch.tensor([0, 2, 3, 4], dtype=torch.int32), torch.tensor([[1.0, 0.0]])
    model.loss_func(policy, torch.zeros_like(policy), targets, rewards, ends)
    monkeypatch.setattr(aligner_model, "largest_on_all_ranks", lambda places: 4.0)
    model.em.exchange(partial(_gather_rows, places=2))
    model.em.commit()
    assert model.em.buffer.margins.tolist() == [0.5 * (1.5 - 0.25), 0.0]


def test_dpo_on_tensors_is_nemo_aligners(one_context_rank):
    """The plain loss, each reward-aware one included, is upstream's own on the same tensors."""
    from nemo_rpo.integrations.nemo_aligner.model import _Labels

    torch.manual_seed(1)
    policy, reference = torch.randn(6, 7), torch.randn(6, 7)
    targets = torch.randint(0, 9, (6, 7))
    targets[:, :2] = -100
    rewards = torch.tensor([4.0, 3.0, 2.0, 1.0, 2.5, 0.0])
    for name in ("dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"):
        ours = bare({"base_loss": name, "enabled": False})
        ours._scale = torch.tensor(1 / 3)
        ours._labels = _Labels(torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), None)
        upstream = object.__new__(MegatronGPTDPOModel)
        torch.nn.Module.__init__(upstream)
        upstream.preference_loss, upstream.ref_policy_kl_penalty, upstream.gt_reward_scale = name, 0.5, 1.0
        expected, _ = upstream.loss_func(policy, reference, targets, rewards)
        torch.testing.assert_close(ours.loss_func(policy, reference, targets, rewards)[0], expected)


# --- settings


def test_other_names_for_columns_are_refused(tmp_path):
    cfg = section([str(write(tmp_path / "train.jsonl", {}))], columns={"annotator": "WorkerId"})
    with pytest.raises(ConfigError, match=r"model\.data\.columns: nothing reads it here.*--to nemo_rl"):
        training_labels(cfg)


@pytest.mark.parametrize(
    ("rpo", "dpo", "message"),
    [
        ({"eta_int": 0.8}, {}, r"unknown key model\.rpo\.eta_int; did you mean 'eta_init'"),
        ({"alpha": 3}, {}, r"model\.rpo\.alpha must be above 0 and at most 1"),
        ({"base_loss": "tdpo1"}, {}, r"model\.rpo\.base_loss=tdpo1 needs more than the log-probs"),
        ({"base_loss": "p2l_bt"}, {}, r"model\.rpo\.base_loss=p2l_bt needs more.*'coefficients'.*own engine"),
        ({"base_loss": "p2l_rao_kupper"}, {}, r"model\.rpo\.base_loss=p2l_rao_kupper needs more.*own engine"),
        ({"base_loss": "p2l_bag"}, {}, r"model\.rpo\.base_loss=p2l_bag needs more.*own engine"),
        ({"base_loss": "cdpo"}, {}, r"already models label noise.*model\.rpo\.enabled=false"),
        ({"prior": [3, 0]}, {}, r"model\.rpo\.prior must be above 0 twice under estimator: buffer"),
        ({"reference": "resident"}, {}, r"model\.rpo\.reference is a setting of this package's own engine"),
        ({}, {"preference_loss": "dppo"}, r"unknown loss 'dppo'"),
    ],
)
def test_bad_settings_are_one_line(rpo, dpo, message):
    cfg = section(["none"], rpo)
    cfg.dpo = OmegaConf.merge(cfg.dpo, dpo)
    with pytest.raises(ConfigError, match=message) as caught:
        base_loss(cfg)
    assert "\n" not in str(caught.value)


def test_names_of_the_recipe_are_the_packages():
    cfg = section(["none"])
    cfg.dpo = {
        "preference_loss": "rpo_sq",
        "ref_policy_kl_penalty": 0.3,
        "gt_reward_scale": 2.0,
        "log_prob_forward_micro_batch_size": 1,
        "sft_loss_weight": 0.1,
    }
    loss = base_loss(cfg)
    assert (loss.name, loss.beta, loss.gt_reward_scale) == ("rpo_sq", 0.3, 2.0)
    assert dpo_settings(cfg).sft_loss_weight == 0.1


# --- the M-step and the checkpoint


@pytest.mark.parametrize(
    ("returned", "outside", "norm"),
    [(None, 1.5, 1.5), ((None, 2.0, None), 0.0, 2.0), ((None, None, None), 0.0, None), (None, float("nan"), None)],
)
def test_the_optimizer_says_whether_it_stepped(returned, outside, norm):
    optimizer = _Watched(SimpleNamespace(step=lambda closure=None: returned, param_groups=["kept"]))
    optimizer.step(closure=None)
    assert optimizer.param_groups == ["kept"]
    found = optimizer.grad_norm(outside)
    assert found == norm or (norm is None and (found is None or np.isnan(found)))


@pytest.mark.parametrize(
    ("loss", "grad_norm", "moves"), [(0.5, 1.0, True), (0.5, float("inf"), False), (float("nan"), 1.0, False)]
)
def test_eta_moves_with_the_weights_alone(loss, grad_norm, moves, monkeypatch):
    model = bare()
    before = model.em.eta.clone()

    def step(self: Any, global_batch: Any) -> tuple[float, dict[str, float]]:
        votes = Votes.single(torch.tensor([0, 1]))
        model.em.accumulate(torch.tensor([0.2, 0.9]), votes, torch.tensor([True, True]))
        return loss, {"grad_norm": grad_norm}

    monkeypatch.setattr(RPOTrainer.__bases__[0], "train_single_step", step)
    trainer = object.__new__(RPOTrainer)
    trainer.model, trainer.optimizer = model, _Watched(SimpleNamespace(step=lambda: None))
    _, metrics = trainer.train_single_step({})
    assert torch.equal(model.em.eta, before) is not moves
    assert not model.em.pending.any()
    assert metrics["em/eta_min"] == model.em.eta.min()
    assert model.em.step == int(moves)


def test_a_checkpoint_brings_eta_back_and_takes_newcomers_if_allowed(monkeypatch):
    monkeypatch.setattr(MegatronGPTDPOModel, "on_save_checkpoint", lambda self, checkpoint: None)
    monkeypatch.setattr(MegatronGPTDPOModel, "on_load_checkpoint", lambda self, checkpoint: None)
    saved, checkpoint = bare(), {}
    saved.em.accumulate(torch.tensor([0.123]), Votes.single(torch.tensor([1])), torch.tensor([True]))
    saved.em.commit()
    saved.on_save_checkpoint(checkpoint)

    strict, open_to_new = bare(), bare({"allow_new_annotators": True})
    for model in (strict, open_to_new):
        model.on_load_checkpoint(checkpoint)
    strict.connect_labels(labels_of("w1", "w2"))
    assert torch.equal(strict.em.eta, saved.em.eta)
    assert strict.em.step == 1
    with pytest.raises(DataError, match=r"annotator 'w0'.*model\.rpo\.allow_new_annotators=true"):
        strict.connect_labels(labels_of("w0", "w1", "w2"))
    open_to_new.connect_labels(labels_of("w0", "w1", "w2"))
    assert open_to_new.labels.annotators.ids == ["w1", "w2", "w0"]
    assert open_to_new.em.eta.tolist() == [*saved.em.eta.tolist(), pytest.approx(0.9)]


def test_a_checkpoint_brings_the_margins_back(monkeypatch):
    monkeypatch.setattr(MegatronGPTDPOModel, "on_save_checkpoint", lambda self, checkpoint: None)
    monkeypatch.setattr(MegatronGPTDPOModel, "on_load_checkpoint", lambda self, checkpoint: None)
    saved, checkpoint = bare({"estimator": "buffer"}), {}
    saved.em.observe(torch.tensor([1]), torch.tensor([0.3]), torch.tensor([True]))
    saved.em.commit()
    saved.on_save_checkpoint(checkpoint)
    shared = checkpoint["nemo_rpo"]["margins"]
    assert shared.equal(shared.clone())  # Megatron compares so what the ranks share; NaN would differ from itself
    found = bare({"estimator": "buffer"})
    found.on_load_checkpoint(checkpoint)
    found.connect_labels(labels_of("w1", "w2"))
    assert found.em.step == 1
    assert found.em.buffer.margins[1] == 0.3 and found.em.buffer.margins[0].isnan()
    with pytest.raises(CheckpointError, match=r"margins are of other pairs.*model\.rpo\.estimator=ema"):
        found.connect_labels(labels_of("w1", "w2", mark="other data"))


def test_a_run_without_reliabilities_is_not_resumed_with_them(monkeypatch):
    monkeypatch.setattr(
        RPOTrainer.__bases__[0], "load_state_dict", lambda self, state: setattr(self, "step", state["step"])
    )
    trainer = object.__new__(RPOTrainer)
    trainer.model = bare()
    with pytest.raises(CheckpointError, match=r"model\.rpo\.enabled=false"):
        trainer.load_state_dict({"step": 5})
    trainer.load_state_dict({"step": 0})


@pytest.mark.parametrize("elsewhere", [0, 1])
@pytest.mark.parametrize(("annotator", "pair"), [(2, 1), (1, -1), (1, 1)])
def test_strangers_are_not_trained_on(annotator, pair, elsewhere, monkeypatch):
    """Neither where they are, nor on the other data-parallel ranks, which would wait for the one that stopped."""
    from nemo_rpo.integrations.nemo_aligner import model as aligner

    model, strangers = bare(), elsewhere + ((annotator, pair) != (1, 1))
    monkeypatch.setattr(aligner, "sum_over_data_parallel", lambda counts: counts.add_(torch.tensor([2.0, elsewhere])))
    monkeypatch.setattr(aligner, "get_num_microbatches", lambda: 1)
    monkeypatch.setattr(aligner.parallel_state, "get_data_parallel_world_size", lambda: 2)
    monkeypatch.setattr(model, "_pass_over", lambda *args: None)
    monkeypatch.setattr(model.step_metrics, "means", lambda held_out: {"loss": 0.0}, raising=False)
    batch = {"annotator": torch.tensor([0, annotator, annotator]), "pair_index": torch.tensor([0, pair, pair])}
    batch["valid"] = torch.tensor([True, True, False])
    if not strangers:
        model.get_loss_and_metrics(batch, forward_only=False)
        return
    with pytest.raises(DataError, match=rf"{strangers} pairs to be trained on are not among the 2 labelled ones"):
        model.get_loss_and_metrics(batch, forward_only=False)


def test_a_loss_without_a_reference_runs_no_reference():
    model = bare({"base_loss": "simpo"})
    tokens = torch.zeros(3, 5, dtype=torch.int64)
    zeros = model.get_ref_policy_logprobs({"chosen": tokens, "rejected": tokens})
    assert zeros.shape == (6, 5) and not zeros.any()
    assert model.get_ref_policy_logprobs({"input_ids": tokens}).shape == (3, 5)
