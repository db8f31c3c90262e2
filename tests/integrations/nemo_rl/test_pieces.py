"""The four pieces one by one, and what they say when something does not fit."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch

from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.integrations.nemo_rl import RobustPolicy, make_loss, preference_collate, preference_processor
from nemo_rpo.integrations.nemo_rl.data import UNKNOWN, data_fingerprint, id_code, labelled_pairs

from .driver import Recipe, rows, run, tokenizer
from .upstream import VERSIONS, AllTaskProcessedDataset, config
from .workers import BigramModel, Workers

every_version = pytest.mark.parametrize("version", VERSIONS, ids=str)


def processed(row: dict, idx: int = 0, **keys) -> dict:
    return preference_processor(row, None, tokenizer, 64, idx, **keys)


def collated(data: list[dict]):
    batch = [processed(row, idx) for idx, row in enumerate(data)]
    return preference_collate(batch, tokenizer=tokenizer, make_sequence_length_divisible_by=8, add_loss_mask=True)


def section(version, **robust):
    tree = {"dpo": {"reference_policy_kl_penalty": 0.1, "robust": robust}, "policy": {}, "checkpointing": {}}
    cfg = config(version, tree)
    return cfg["dpo"] if version.dictionary_config else cfg.dpo


def test_importing_the_pieces_needs_no_nemo_rl():
    script = "import sys, nemo_rpo.integrations.nemo_rl as n; assert n.RobustPolicy and 'nemo_rl' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- data: nemo_rl/data/processors.py and nemo_rl/data/collate_fn.py, the same in v0.6.0, v0.7.0 and main


def test_a_batch_carries_annotators_and_pairs_behind_upstreams_own_keys():
    batch = collated(rows(3, annotators=2))
    assert list(batch) == [
        "input_ids",
        "input_lengths",
        "sample_mask",
        "token_mask",
        "annotator",
        "pair_id",
        "row_index",
    ]
    first, second = id_code("worker-0"), id_code("worker-1")
    assert batch["annotator"].tolist() == [first, first, second, second, first, first]
    assert batch["pair_id"].tolist() == [100, 100, 101, 101, 102, 102]
    assert batch["row_index"].tolist() == [0, 0, 1, 1, 2, 2]
    assert {batch[key].dtype for key in ("annotator", "pair_id", "row_index")} == {torch.int64}
    assert batch.size == 6


@pytest.mark.parametrize(("identity", "code"), [(7, 7), ("7", 7), (7.0, 7), (0, 0), (None, UNKNOWN), ("", UNKNOWN)])
def test_numbers_stand_for_themselves(identity, code):
    assert processed({**rows(1)[0], "annotator": identity})["annotator"] == code


def test_texts_have_one_code_in_every_process():
    # Ray's workers and the loader's processes have hash seeds of their own.
    assert id_code("Ann") == 8628004385347184023
    assert len({id_code(f"w{i}") for i in range(10_000)}) == 10_000
    assert all(2**62 <= id_code(text) < 2**63 for text in ("", "-1", "007", "1e3", "٣", str(2**70)))


def test_pairs_without_an_id_are_counted():
    row = rows(1)[0]
    del row["pair_id"]
    assert processed(row, idx=17)["pair_id"] == 17


def test_other_keys_can_be_named():
    row = {**rows(1)[0], "rater": 5, "uuid": "x"}
    found = processed(row, annotator_key="rater", pair_id_key="uuid")
    assert (found["annotator"], found["pair_id"]) == (5, id_code("x"))


def test_equal_responses_are_masked():
    row = copy.deepcopy(rows(1)[0])
    row["completions"][0]["completion"] = row["completions"][1]["completion"]
    assert processed(row)["loss_multiplier"] == 0.0
    assert processed(rows(1)[0])["loss_multiplier"] == 1.0


def test_an_id_of_another_type_is_refused():
    with pytest.raises(DataError, match="field 'annotator' must be an id"):
        processed({**rows(1)[0], "annotator": ["a", "b"]})


class Columns:
    """A Hugging Face data set, as far as it is read."""

    def __init__(self, data: list[dict]) -> None:
        self.data, self.column_names = data, list(data[0])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: str | slice) -> list | dict[str, list]:
        if isinstance(key, slice):
            return {name: [row[name] for row in self.data[key]] for name in self.column_names}
        return [row[key] for row in self.data]


@pytest.mark.parametrize("kind", [list, Columns], ids=["rows", "columns"])
def test_the_table_lists_who_labelled(kind):
    data = rows(7, annotators=3)
    data[1]["annotator"] = 12
    dataset = AllTaskProcessedDataset(kind(data), tokenizer, {}, 64)
    table = labelled_pairs(dataset, "annotator").table()
    assert table.ids == ["12", "worker-0", "worker-1", "worker-2"]
    assert table.labels.tolist() == [1, 3, 1, 2]
    other = kind([data[1], data[0], *data[2:]])
    assert data_fingerprint(dataset) == data_fingerprint(kind(data)) != data_fingerprint(other)


@pytest.mark.parametrize("kind", [list, Columns], ids=["rows", "columns"])
@every_version
def test_training_data_must_name_its_annotators(version, kind):
    data = rows(3)
    make = partial(make_loss, section(version), None)
    make(kind(data))
    with pytest.raises(DataError, match=r"data:2: field 'annotator' is null"):
        make(kind([data[0], {**data[1], "annotator": None}]))
    for row in data:
        del row["annotator"]
    with pytest.raises(DataError, match="'annotator'"):
        make(kind(data))
    make_loss(section(version, annotator_key=None), None, kind(data))
    make_loss(section(version, enabled=False), None, kind(data))


def test_the_message_about_a_dropped_field_names_the_cure():
    """nemo_rl/data/datasets/preference_datasets/binary_preference_dataset.py drops all fields but its own."""
    data = [{"context": [], "completions": [], "task_name": "pairs"}]
    with pytest.raises(DataError, match="BinaryPreferenceDataset drops fields") as caught:
        make_loss(section(VERSIONS[0]), None, Columns(data))
    assert "\n" not in str(caught.value)


@every_version
def test_labels_without_ids_are_one_annotators(version, tmp_path):
    data = rows(16)
    for row in data:
        del row["annotator"]
    robust = {"annotator_key": None, "estimator": "ema"}
    found = run(Recipe(version, tmp_path, data, robust=robust, max_steps=2))
    assert found.policy.annotators.ids == ["all"]
    found.policy.settle()
    assert found.policy.em.label_counts.tolist() == [16]
    assert found.policy.reliabilities.keys() == {"all"}


# --- loss: nemo_rl/algorithms/loss/interfaces.py


@every_version
@pytest.mark.parametrize(
    "name", ["tdpo1", "dmpo", "todo", "rpo_sq", "bt", "dno", "pro", "p2l_bt", "p2l_rao_kupper", "p2l_bag"]
)
def test_a_loss_that_needs_more_is_refused_by_name(version, name):
    with pytest.raises(ConfigError, match=rf"dpo\.robust\.base_loss={name} needs more than the log-probs"):
        make_loss(section(version, base_loss=name))


@every_version
@pytest.mark.parametrize(
    ("robust", "message"),
    [
        ({"eta_int": 0.8}, r"unknown key dpo\.robust\.eta_int; did you mean 'eta_init'\?"),
        ({"eta_init": 1.5}, r"dpo\.robust\.eta_init must be"),
        ({"columns": {"annotator": "WorkerId"}}, r"dpo\.robust\.columns: nothing reads it here.*nemo-rpo convert"),
        ({"alpha": "fast"}, r"dpo\.robust\.alpha must be a number"),
        ({"base_loss": "rdpo"}, r"already models label noise.*dpo\.robust\.enabled=false"),
        ({"base_loss": "dop"}, "unknown loss 'dop'; did you mean"),
        ({"sweep": "end"}, r"dpo\.robust\.sweep=end"),
        ({"estimator": "adam"}, r"dpo\.robust\.estimator must be one of ema, buffer"),
        ({"reference": "cached"}, r"dpo\.robust\.reference is a setting of this package's own engine"),
    ],
)
def test_bad_settings_are_one_line(version, robust, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_loss(section(version, **robust))
    assert "\n" not in str(caught.value)


@every_version
@pytest.mark.parametrize("data", [{"columns": {"annotator": "w"}}, {"train": {"columns": {"annotator": "w"}}}])
def test_columns_of_the_data_that_nothing_reads_are_refused(version, data):
    master = config(version, {"dpo": {}, "policy": {}, "data": data, "checkpointing": {}})
    with pytest.raises(ConfigError, match=r"columns: nothing reads it here"):
        make_loss(section(version), master_config=master)


@every_version
def test_workers_read_from_the_loss_whether_they_hold_logprobs(version):
    """nemo_rl/algorithms/loss/utils.py, ``prepare_loss_input``: by the attribute's name, which main has changed."""
    megatron = {"enabled": True, version.fused_flag: True}
    master = config(version, {"dpo": {}, "policy": {"megatron_cfg": megatron}, "checkpointing": {}})
    attribute = version.fused_flag.removesuffix("_loss")
    assert getattr(make_loss(section(version), master_config=master), attribute) is True
    megatron["enabled"] = False
    assert getattr(make_loss(section(version), master_config=master), attribute) is False


def test_the_loss_is_small_stateless_and_says_what_it_takes():
    loss = make_loss(section(VERSIONS[-1], base_loss="simpo", loss_options={"gamma_beta_ratio": 0.3}))
    wire = pickle.dumps(loss)
    assert len(wire) < 2000
    assert pickle.loads(wire) == loss
    assert (loss.loss_type.value, loss.input_type.value) == ("sequence_level", "logprob")


def test_a_batch_without_reliabilities_is_refused():
    batch = collated(rows(2))
    batch["reference_policy_logprobs"] = torch.zeros(batch["input_ids"].shape)
    with pytest.raises(ConfigError, match="RobustPolicy"):
        make_loss(section(VERSIONS[0]))(
            data=batch,
            global_valid_seqs=torch.tensor(4.0),
            global_valid_toks=torch.tensor(8.0),
            next_token_logprobs=torch.zeros(4, batch["input_ids"].shape[1] - 1),
        )


# --- policy


def robust_policy(workers: Workers, data: list[dict], **robust) -> RobustPolicy:
    loss = make_loss(section(VERSIONS[0], estimator="ema", **robust))
    return RobustPolicy(workers, master_config={}, loss_fn=loss, train_dataloader=data, dpo_save_state=None)


def step(policy: RobustPolicy, batch, **kwargs):
    batch["reference_policy_logprobs"] = torch.zeros(batch["input_ids"].shape)
    loss = make_loss(section(VERSIONS[0]))
    return policy.train(batch, loss, gbs=batch.size, mbs=2, **kwargs)


def test_a_skipped_step_moves_neither_weights_nor_eta():
    workers = Workers(BigramModel(), dp_size=1)
    policy = robust_policy(workers, rows(4))
    workers.spoil_gradient = True
    step(policy, collated(rows(4)))
    assert policy.em.step == 0
    assert policy.em.label_counts.tolist() == [0, 0, 0]
    workers.spoil_gradient = False
    step(policy, collated(rows(4)))
    assert policy.em.label_counts.tolist() == [2, 1, 1]


def test_a_batch_that_is_masked_whole_counts_as_a_step_without_labels():
    policy = robust_policy(Workers(BigramModel(), dp_size=1), rows(4))
    batch = collated(rows(4))
    batch["sample_mask"].zero_()
    results = step(policy, batch)
    assert results["all_mb_metrics"] == {}
    assert (policy.em.step, policy.em.label_counts.tolist()) == (1, [0, 0, 0])


def test_a_batch_without_row_indices_is_refused():
    policy = robust_policy(Workers(BigramModel(), dp_size=1), rows(4))
    batch = collated(rows(4))
    del batch["row_index"]
    with pytest.raises(DataError, match=r"no 'row_index': give the data loaders preference_collate"):
        step(policy, batch)


def test_warm_up_ignores_the_model_and_keeps_eta():
    workers = Workers(BigramModel(), dp_size=2)
    policy = robust_policy(workers, rows(4), warmup_steps=1)
    batch = collated(rows(4))
    results = [step(policy, copy.copy(batch)) for _ in range(2)]
    assert [seen["em_voice"].tolist() for seen in workers.seen] == [[0.0] * 8, [1.0] * 8]
    assert results[0]["all_mb_metrics"]["em/posterior_mean"] == [pytest.approx(0.9)]
    assert policy.em.label_counts.sum() == 4


def test_the_batch_of_the_caller_is_left_as_it_was():
    policy = robust_policy(Workers(BigramModel(), dp_size=1), rows(4))
    batch = collated(rows(4))
    before = set(batch) | {"reference_policy_logprobs"}
    step(policy, batch)
    assert set(batch) == before


def test_strangers_are_refused_in_training():
    policy = robust_policy(Workers(BigramModel(), dp_size=1), rows(4))
    with pytest.raises(DataError, match=r"annotator of training pair 100 .*field 'annotator'"):
        step(policy, collated(rows(4, annotator="somebody else")))


def test_one_call_is_one_step():
    policy = robust_policy(Workers(BigramModel(), dp_size=1), rows(4))
    with pytest.raises(ConfigError, match="gbs=4 would take several steps"):
        policy.train(collated(rows(4)), make_loss(section(VERSIONS[0])), gbs=4, mbs=2)


def test_everything_else_is_the_policys_own():
    workers = Workers(BigramModel(), dp_size=3)
    policy = robust_policy(workers, rows(4))
    assert policy.cfg is workers.cfg
    assert policy.sharding_annotations.get_axis_size("data_parallel") == 3
    with pytest.raises(AttributeError):
        policy.no_such_thing  # noqa: B018
    with pytest.raises(AttributeError):
        RobustPolicy.__new__(RobustPolicy).anything  # noqa: B018
