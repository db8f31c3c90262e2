"""A probe of a frozen model: planted states, the layer that knows, margins beside votes, a real model's folder."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest

from nemo_rpo.cli import main
from nemo_rpo.crowd.crowd_fit import fit_crowd
from nemo_rpo.crowd.factors.linear_bt import sigmoid
from nemo_rpo.crowd.long_form import vote_table
from nemo_rpo.evaluation.probe import probing
from nemo_rpo.evaluation.probe.hidden_states import HiddenStates
from nemo_rpo.evaluation.probe.probe_of_file import probe_file
from nemo_rpo.evaluation.probe.probe_settings import ProbeSettings
from nemo_rpo.evaluation.probe.probing import probe_layers


def test_doctests():
    assert doctest.testmod(probing).failed == 0


@pytest.mark.parametrize("kind", ["logistic", "lda"])
def test_finds_the_layer_that_knows(kind):
    rng = np.random.default_rng(0)
    knows, noise = rng.normal(size=(2, 600, 5))
    truth = (rng.random(600) < sigmoid(2 * knows[:, 0])).astype(float)
    groups, known = np.arange(600) // 6, np.ones(600, dtype=bool)
    known[:30] = False
    found = probe_layers([noise, knows, noise], [0, 1, 2], truth, known, groups, ProbeSettings(kind=kind))
    assert found.best.layer == 1 and found.believed
    assert found.best.low > 0.6 and found.layers[0].low < 0.5 < found.layers[0].high
    assert np.corrcoef(found.margin, knows[:, 0])[0, 1] > 0.95  # of pairs nobody voted on too
    nothing = probe_layers([noise], [0], truth, known, groups)
    assert not nothing.believed and not nothing.margin.any()


def test_margins_are_turned_with_their_pairs():
    """Pairs that the fit turns round (their files name a winner first): a margin for the truth helps, its opposite
    hurts."""
    rng = np.random.default_rng(1)
    truth = np.where(rng.random(300) < 0.5, 1, -1)
    said = np.where(rng.random((300, 2)) < 0.75, truth[:, None], -truth[:, None])
    rows = {"pair": np.repeat(np.arange(300), 2), "annotator": [f"w{i % 8}" for i in range(600)], "vote": said.ravel()}
    columns = {name: list(values) for name, values in rows.items()}
    table = vote_table(columns, {name: name for name in columns})
    order = np.array([int(name) for name in table.pair_id])
    margin = 2.0 * truth[order]

    def right(margin) -> float:
        fit = fit_crowd(table, margin=margin)
        first = np.where(table.content_turned != fit.table.content_turned, 1 - fit.w, fit.w)
        return float(np.where(truth[order] > 0, first, 1 - first).mean())

    assert right(margin) > right(None) + 0.05 > right(-margin) + 0.2


def test_turned_files_give_turned_margins(tmp_path):
    """Rows that name a winner first are put into another order by the fit; the file's probe knows."""

    class Words:
        layers = (0,)

        def of(self, answers):
            return np.array([[[float("good" in text), 1.0] for _, text in answers]], dtype=np.float32)

    path = tmp_path / "rows.jsonl"
    lines = []
    for i in range(120):
        good, bad = {"text": f"good {i}"}, {"text": f"evil {i}"}
        chosen, rejected = (bad, good) if i % 5 == 0 else (good, bad)
        row = {"prompt": f"p{i}", "chosen": chosen["text"], "rejected": rejected["text"], "annotator": None}
        lines += [json.dumps(row | {"annotator": f"w{k}"}) for k in range(3)]
    path.write_text("\n".join(lines))
    from nemo_rpo.data.data_settings import RowFormat
    from nemo_rpo.data.vote_ledger import read_votes

    table = read_votes([path])
    alone = fit_crowd(table)
    assert (alone.table.content_turned != table.content_turned).any()
    found = probe_file([path], RowFormat(), table, alone, Words(), ProbeSettings())
    first_good = np.arange(120) % 5 != 0
    np.testing.assert_array_equal(found.probe.margin > 0, first_good)


@pytest.fixture(scope="module")
def model(shared_data):
    pytest.importorskip("transformers", reason="hidden states come from transformers")
    return shared_data / "stories260k" / "hf"


def test_states_do_not_depend_on_the_batch(model):
    """Padding and neighbours change nothing; last is the last token's state, and mean the mean of the answer's."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    answers = [
        ("Once upon", " a time"),
        ("", "there was a little girl who liked to play in the park"),
        ("One", " day."),
    ]
    alone = HiddenStates(model, ProbeSettings(batch=1)).of(answers)
    together = HiddenStates(model, ProbeSettings(batch=3)).of(answers)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).float().eval()
    asked = tokenizer("Once upon").input_ids
    ids = asked + tokenizer(" a time", add_special_tokens=False).input_ids
    with torch.inference_mode():
        states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
    last = HiddenStates(model, ProbeSettings(state="last", layers=(2, -1))).of(answers)
    np.testing.assert_allclose(last[0, 0], states[2][0, -1], atol=1e-4)
    np.testing.assert_allclose(alone[3, 0], states[3][0, len(asked) :].mean(0), atol=1e-4)


def test_command_probes_a_folder(model, tmp_path, capsys):
    rng, rows = np.random.default_rng(2), []
    for i in range(60):
        better = int(rng.integers(2))
        texts = ["The cat was happy." if side == better else "xqz zv 7# qqq k 9 z"[:18] for side in (0, 1)]
        says = [better if rng.random() < 0.85 else 1 - better for _ in range(3)]
        votes = [{"annotator": f"w{k}", "vote": "ab"[say]} for k, say in enumerate(says)]
        rows.append({"prompt": f"{i}", "response_a": texts[0], "response_b": texts[1], "votes": votes})
    path, words, page = (tmp_path / name for name in ("v.jsonl", "words.csv", "page.html"))
    path.write_text("\n".join(map(json.dumps, rows)))
    words.write_text("first,second,template\nhappy,zv7#,The cat was {} .\n")
    asked = ["annotators", str(path), "--probe", str(model), "--probe-layers", "0,-1", "--word-pairs", str(words)]
    assert main([*asked, "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in found["probe"]["layers"]] == [0, 5] and found["probe"]["believed"]
    assert found["probe"]["layers"][1]["accuracy"] > 0.9 and found["words"][0]["low"] < found["words"][0]["high"]
    assert "frozen model knows" in page.read_text()
    for options, message in (
        (["--probe", str(tmp_path / "none")], "there is no folder"),
        (["--probe", str(tmp_path)], "with a config.json"),
        (["--probe", str(model), "--probe-layers", "9"], "has layers 0 (embeddings) to 5"),
        (["--word-pairs", str(words)], "--word-pairs goes with --probe MODEL"),
    ):
        assert main(["annotators", str(path), *options]) == 2
        assert message in capsys.readouterr().err
