"""What goes into a cache, what comes out, what is left out and why, and when it is built again."""

import dataclasses
import json
import os
import random
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from nemo_rpo.data.annotator_table import Annotator, AnnotatorTable
from nemo_rpo.data.cache import build
from nemo_rpo.data.cache import spec as cache_spec
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.cache.store import PreferenceCache
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.digests import sealed
from nemo_rpo.errors import ConfigError, DataError

from .conftest import TEXT, write_jsonl

WORDS = " ".join(TEXT).split()


def sentence(rng, words=8):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def random_rows(n, seed=0):
    rng = random.Random(seed)
    for i in range(n):
        votes = [{"annotator": f"w{rng.randrange(9)}", "vote": rng.choice(["a", "a", "b", "tie"])} for _ in range(3)]
        yield {
            "pair_id": f"pair-{i}",
            "prompt": sentence(rng, rng.randrange(1, 20)),
            "response_a": f"{sentence(rng)} {i}",
            "response_b": sentence(rng, 5),
            "votes": votes,
            "gold": rng.choice(["a", "b", "tie"]),
            "margin": rng.random(),
        }


@pytest.fixture
def spec(tmp_path, tokenizer_folder):
    def make(rows, **changes):
        path = write_jsonl(tmp_path / "train.jsonl", list(rows))
        settings = dict(seq_length=64, group_votes=True, invalid_pairs="error")
        tokenizer = TokenizerSpec(str(tokenizer_folder), use_chat_template=False)
        return CacheSpec(paths=path, keys=RowFormat(), tokenizer=tokenizer, **(settings | changes))

    return make


def opened(spec, **options):
    return open_cache(spec, None, **({"num_workers": 0, "wait_timeout": 60} | options))


def test_pairs_come_back_as_they_were_said(spec, tokenizer):
    rows = list(random_rows(300))
    cache = opened(spec(rows))
    by_id = {row["pair_id"]: row for row in rows}
    sign = {"a": 1, "b": -1}
    for i in range(len(cache)):
        pair = cache.pair(i)
        row = by_id[pair.pair_id]
        cast = [(vote["annotator"], sign[vote["vote"]]) for vote in row["votes"] if vote["vote"] != "tie"]
        turn = -1 if sum(s for _, s in cast) < 0 else 1
        first, second = ("response_a", "response_b") if turn > 0 else ("response_b", "response_a")
        prompt_ids, chosen_ids = tokenizer.render(row["prompt"], row[first])
        assert pair.prompt_ids.tolist() == prompt_ids.tolist()
        assert pair.chosen_ids.tolist() == chosen_ids.tolist()
        assert pair.rejected_ids.tolist() == tokenizer.render(row["prompt"], row[second])[1].tolist()
        assert [(cache.annotators.ids[k], s) for k, s in zip(pair.annotator, pair.sign, strict=True)] == [
            (annotator, s * turn) for annotator, s in cast
        ]
        assert pair.gold == (sign[row["gold"]] * turn if row["gold"] != "tie" else None)
        assert pair.columns == {"margin": pytest.approx(row["margin"] * turn)}
        assert cache.lengths[i].tolist() == [len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)]
        assert cache.where(i).endswith(f"train.jsonl:{rows.index(row) + 1}")
    silent = sum(all(vote["vote"] == "tie" for vote in row["votes"]) for row in rows)
    assert silent > 0
    assert len(cache) == 300 - silent
    assert cache.report["dropped"] == {"no signed vote": silent}
    ties = sum(vote["vote"] == "tie" for row in rows for vote in row["votes"])
    assert (cache.report["rows"], cache.report["votes"], cache.report["ties"]) == (300, 900, ties)
    assert cache.max_votes == 3
    assert cache.max_token_id == max(int(cache.pair(i).chosen_ids.max()) for i in range(len(cache))) < cache.vocab_size


def test_all_votes_are_the_pairs_votes(spec):
    cache = opened(spec(random_rows(60)))
    pair, annotator, sign = cache.all_votes()
    assert annotator.tolist() == [k for i in range(len(cache)) for k in cache.pair(i).annotator]
    assert sign.tolist() == [s for i in range(len(cache)) for s in cache.pair(i).sign]
    assert np.bincount(pair).min() >= 1
    assert np.bincount(annotator, minlength=9).tolist() == cache.annotators.labels.tolist()


def known_rows(n):
    """Rows of votes with everything that may be known of them."""
    rng = random.Random(3)
    for i, row in enumerate(random_rows(n)):
        for vote in row["votes"]:
            vote |= {
                "shown_first": rng.choice("ab"),
                "strength": rng.randrange(3),
                "family": vote["annotator"][-1] < "4",
            }
            vote |= {"seconds": rng.random(), "time": f"2026-01-0{1 + i % 9}T00:00:00Z", "confidence": rng.random()}
            vote["family"] = "judges" if vote["family"] else None
        yield {**row, "topic": rng.choice(["cats", "dogs", None])}


def test_what_is_known_of_votes_comes_back_relative_to_chosen(spec):
    rows = list(known_rows(80))
    cache = opened(spec(rows))
    known, (pair, _, sign) = cache.known_of_votes(), cache.all_votes()
    by_id, side, vote = {row["pair_id"]: row for row in rows}, {"a": 1, "b": -1}, 0
    for i in range(len(cache)):
        row = by_id[cache.pair_id(i)]
        turn = int(known["chosen_first"][i])  # files with an order of their own: a is first
        for cast in (cast for cast in row["votes"] if cast["vote"] != "tie"):
            assert (pair[vote], sign[vote]) == (i, turn * side[cast["vote"]])
            assert known["shown_first"][vote] == turn * side[cast["shown_first"]]
            assert known["strength"][vote] == cast["strength"]
            assert known["confidence"][vote] == np.float32(cast["confidence"])
            assert known["seconds"][vote] == np.float32(cast["seconds"])
            assert known["time"][vote] == 1767225600 + 86400 * (int(cast["time"][9]) - 1)
            vote += 1
        assert (row["topic"] is None) == (known["topic"][i] == -1)
        assert row["topic"] in (None, cache.topics[known["topic"][i]])
        assert known["lengths"][i].tolist() == cache.lengths[i, 1:].tolist()
    assert vote == len(sign) and cache.families == ["judges"]
    assert [k < "w4" for k in cache.annotators.ids] == (known["family"] == 0).tolist()
    renamed = AnnotatorTable([Annotator("new", 0, ""), *reversed(cache.annotators.annotators)])
    cache.use_annotators(renamed)
    assert [k.startswith("w") and k < "w4" for k in renamed.ids] == (cache.known_of_votes()["family"] == 0).tolist()


def test_nothing_is_stored_that_no_row_says(spec):
    cache = opened(spec(random_rows(20)))
    assert set(cache.known_of_votes()) == {"gold", "lengths"}
    written = {path.stem for path in cache.folder.iterdir()}
    assert not written & {"vote_shown_first", "vote_strength", "vote_time", "topic", "family", "chosen_first"}


def test_an_order_that_always_puts_the_winner_first_is_none(spec):
    """Such pairs are put into an order that tosses a coin; with votes for both sides the file's own order stays."""
    rows = [
        {
            "prompt": sentence(random, 4),
            "chosen": f"{i} x",
            "rejected": f"{i} y",
            "annotator": "w",
            "shown_first": "chosen",
        }
        for i in range(200)
    ]
    first = opened(spec(rows)).known_of_votes()["chosen_first"]
    assert 70 < (first > 0).sum() < 130
    again = opened(spec([{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]))
    assert (again.known_of_votes()["chosen_first"] == -first).all()  # whatever was said of them


def test_the_log_says_what_was_left_out(spec, caplog):
    rows = [
        *random_rows(20),
        {"pair_id": "e", "prompt": "x", "response_a": " ", "response_b": "y", "votes": [{"vote": "a"}]},
    ]
    with caplog.at_level("INFO"):
        opened(spec(rows, invalid_pairs="drop"))
    assert "1 empty completion" in caplog.text
    assert "1 vote without an annotator's id" in caplog.text


def test_processes_change_nothing(spec, monkeypatch):
    rows = list(random_rows(700))
    monkeypatch.setattr("nemo_rpo.data.cache.encoder.SPAWN_FROM", 100)
    one, two = spec(rows), spec(rows, invalid_pairs="drop")
    seen = []
    alone = opened(one)
    pool = opened(two, num_workers=2, progress=lambda done, total: seen.append((done, total)))
    for name in ("tokens.bin", "offsets.npy", "content_hash.npy", "annotator.npy", "pair_id.bin"):
        assert (alone.folder / name).read_bytes() == (pool.folder / name).read_bytes()
    assert seen[-1] == (700, 700)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_bad_row_ends_a_parallel_build_with_its_name(spec, monkeypatch):
    monkeypatch.setattr("nemo_rpo.data.cache.encoder.SPAWN_FROM", 100)
    rows = [*random_rows(600), '{"prompt"']
    with pytest.raises(DataError, match=r"train\.jsonl:601: bad JSON"):
        opened(spec(rows), num_workers=2)


def hf_row(chosen, rejected, prompt="why so?"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


INVALID = {
    "empty completion": hf_row("", "no"),
    "identical completions": hf_row("the same", "the same"),
    "over-long completion": hf_row("no", "word " * 70),
}


@pytest.mark.parametrize("reason", INVALID)
def test_a_pair_that_cannot_be_trained_on_is_an_error_that_counts_them(spec, reason):
    rows = [hf_row("yes", "no"), INVALID[reason], hf_row("a", "b"), {**INVALID[reason], "prompt": "again?"}]
    with pytest.raises(DataError) as caught:
        opened(spec(rows))
    message = str(caught.value)
    assert "train.jsonl:2: " + reason in message
    assert "set model.data.invalid_pairs=drop to leave such pairs out (2 of 4 pairs)" in message
    assert "\n" not in message


def test_invalid_pairs_are_dropped_and_counted_by_reason(spec):
    cache = opened(spec([hf_row("yes", "no"), *INVALID.values()], invalid_pairs="drop"))
    assert len(cache) == 1
    assert cache.report["dropped"] == dict.fromkeys(INVALID, 1)
    assert cache.annotators.labels.tolist() == [1]


def test_an_empty_answer_is_empty_though_the_template_ends_its_turn(spec):
    messages = [{"role": "assistant", "content": ""}]
    row = hf_row(messages, [{"role": "assistant", "content": "x"}], [{"role": "user", "content": "?"}])
    with pytest.raises(DataError, match="empty completion"):
        opened(spec([row]))


def test_responses_that_differ_in_text_and_not_in_tokens_are_identical(tmp_path, spec):
    from .conftest import train_tokenizer

    folder = train_tokenizer(tmp_path / "lowercasing")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    wanted = dataclasses.replace(spec([hf_row("Yes", "yes")]), tokenizer=TokenizerSpec(str(folder), False))
    with pytest.raises(DataError, match=r"train\.jsonl:1: identical completions"):
        opened(wanted)


def test_turns_of_a_dialogue_go_with_their_response(spec, tokenizer):
    def said(*contents):
        return [{"role": ("assistant", "user")[i % 2], "content": content} for i, content in enumerate(contents)]

    user = [{"role": "user", "content": "which is the better one?"}]
    dialogue, answer = said("a cat", "why?", "a dog"), said("a tie")
    rows = [
        {
            "pair_id": "long first",
            "prompt": user,
            "response_a": dialogue,
            "response_b": answer,
            "votes": [{"vote": "a"}],
        },
        {
            "pair_id": "long last",
            "prompt": user,
            "response_a": said("x"),
            "response_b": dialogue,
            "votes": [{"vote": "a"}],
        },
        {
            "pair_id": "turned",
            "prompt": user,
            "response_a": said("y"),
            "response_b": dialogue,
            "votes": [{"vote": "b"}],
        },
    ]
    cache = opened(spec(rows))
    _, _, runs = tokenizer.render_turns(user, dialogue)
    pairs = {pair.pair_id: pair for pair in map(cache.pair, range(len(cache)))}
    assert pairs["long first"].chosen_runs.tolist() == pairs["turned"].chosen_runs.tolist() == runs.tolist()
    assert pairs["long last"].rejected_runs.tolist() == runs.tolist()
    assert pairs["turned"].rejected_runs.tolist() == [len(pairs["turned"].rejected_ids)]
    turns = runs[0] + runs[2]
    order = [pairs[cache.pair_id(i)] for i in range(3)]
    expected = [[turns if len(of) == 3 else of.sum() for of in (p.chosen_runs, p.rejected_runs)] for p in order]
    assert cache.scored_lengths().tolist() == expected


def test_data_of_single_turns_says_nothing_of_them(spec):
    cache = opened(spec(random_rows(5)))
    assert cache.pair(0).chosen_runs is None
    assert cache.scored_lengths().tolist() == cache.lengths[:, 1:].tolist()


def test_ties_stay_where_there_is_a_use_for_them(spec):
    said = {"both": ["tie", "tie"], "one": ["tie", "b"], "none": []}
    rows = [
        {
            "pair_id": name,
            "prompt": "x",
            "response_a": f"y {name}",
            "response_b": "z",
            "votes": [{"vote": v} for v in cast],
        }
        for name, cast in said.items()
    ]
    with_ties, without = opened(spec(rows, keep_ties=True)), opened(spec(rows))
    kept = [with_ties.pair(i) for i in range(len(with_ties))]
    assert {pair.pair_id: (pair.columns["tie"], pair.sign.tolist()) for pair in kept} == {
        "both": (1.0, []),
        "one": (0.0, [1]),
    }
    assert with_ties.report["dropped"] == {"no signed vote": 1}
    assert len(without) == 1 and "tie" not in without.columns


def test_a_pair_of_ties_only_is_no_error_even_if_invalid(spec):
    tied = {"prompt": "x", "response_a": "", "response_b": "y", "votes": [{"vote": "tie"}]}
    cache = opened(spec([tied, *random_rows(5, seed=3)]))
    assert cache.report["dropped"]["no signed vote"] >= 1


def test_pairs_that_somebody_labelled_both_ways_are_counted(spec):
    said = ["a", "b"]
    texts = {"prompt": "x", "response_a": "y", "response_b": "z"}
    torn = {**texts, "pair_id": "torn", "votes": [{"annotator": "ann", "vote": v} for v in said]}
    unnamed = {**texts, "pair_id": "unnamed", "votes": [{"vote": v} for v in said]}
    orders = [{"annotator": "judge", "vote": v, "shown_first": v} for v in said]
    cache = opened(spec([torn, unnamed, {**texts, "pair_id": "orders", "votes": orders}]))
    assert cache.report["notes"] == {"pairs that one annotator labelled both ways: nemo-rpo validate names them": 1}


def test_nothing_left_is_an_error(spec):
    with pytest.raises(DataError, match=r"no pair of 1 can be trained on \(1 empty completion\)"):
        opened(spec([INVALID["empty completion"]], invalid_pairs="drop"))


def test_long_prompts_lose_their_left_and_completions_nothing(spec, tokenizer):
    prompt = " ".join(random.Random(1).choice(WORDS) for _ in range(200))
    cache = opened(spec([hf_row("yes it is", "no", prompt)]))
    whole, response = tokenizer.render(prompt, "yes it is")
    pair = cache.pair(0)
    assert len(pair.prompt_ids) + len(pair.chosen_ids) == 64
    assert pair.prompt_ids[0] == tokenizer.bos_id
    assert pair.prompt_ids[1:].tolist() == whole[len(whole) - len(pair.prompt_ids) + 1 :].tolist()
    assert pair.chosen_ids.tolist() == response.tolist()
    assert cache.report["truncated_prompts"] == 1


def test_messages_without_a_template_name_the_row(spec, tmp_path):
    from .conftest import train_tokenizer

    folder = train_tokenizer(tmp_path / "plain", chat_template=None)
    rows = [hf_row("a", "b"), hf_row("a", "b", [{"role": "user", "content": "x"}])]
    wanted = dataclasses.replace(spec(rows), tokenizer=TokenizerSpec(str(folder), False))
    with pytest.raises(DataError, match=r"train\.jsonl:2: the row has messages"):
        opened(wanted)


def test_the_content_hash_knows_orientation_and_nothing_of_rows(spec):
    rows = [hf_row("yes", "no"), hf_row("x", "y")]
    first = opened(spec(rows))
    turned = opened(spec([hf_row("other", "one"), hf_row("no", "yes"), hf_row("x", "y")]))
    hashes = [first.pair(i).content_hash for i in range(2)]
    assert first.pair(0).pair_id == turned.pair(1).pair_id
    assert turned.pair(1).content_hash != hashes[0]
    assert turned.pair(2).content_hash == hashes[1]
    assert len({len(h) for h in hashes}) == 1 and len(hashes[0]) == 16


def test_a_pair_turned_by_its_votes_has_the_hash_of_its_new_orientation(spec):
    recorded = opened(spec([hf_row("yes", "no")])).pair(0)
    said_b = {"prompt": "why so?", "response_a": "no", "response_b": "yes", "votes": [{"vote": "b"}]}
    assert opened(spec([said_b])).pair(0).content_hash == recorded.content_hash
    said_a = {**said_b, "votes": [{"vote": "a"}]}
    assert opened(spec([said_a])).pair(0).content_hash != recorded.content_hash


def test_one_row_a_vote(spec):
    cache = opened(spec(random_rows(50), group_votes=False))
    assert len(cache) == cache.report["votes"] - cache.report["ties"]
    assert all(cache.pair(i).sign.tolist() == [1] for i in range(len(cache)))
    assert cache.max_votes == 1


def test_a_second_start_tokenises_nothing(spec, monkeypatch):
    wanted = spec(random_rows(30))
    first = opened(wanted)
    monkeypatch.setattr(PreferenceTokenizer, "load", lambda *_: pytest.fail("loaded the tokenizer"))
    monkeypatch.setattr(build, "write_cache", lambda *_: pytest.fail("built again"))
    second = opened(wanted)
    assert second.folder == first.folder
    assert second.report == first.report


def test_moved_data_keep_their_cache(spec, tmp_path):
    wanted = spec(random_rows(10))
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(wanted.paths[0], other)
    moved = dataclasses.replace(wanted, paths=other / "train.jsonl")
    folders = {open_cache(s, tmp_path / "c", num_workers=0, wait_timeout=9).folder for s in (wanted, moved)}
    assert len(folders) == 1


@pytest.mark.parametrize(
    "ingredient",
    [
        *("data", "order of files", "layout", "annotator_key", "pair_id_key", "group_votes", "invalid_pairs"),
        *("tokenizer", "template", "use_chat_template", "seq_length", "truncation", "version"),
    ],
)
def test_every_ingredient_is_in_the_key(spec, tmp_path, tokenizer_folder, monkeypatch, ingredient):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    second = write_jsonl(tmp_path / "more.jsonl", list(random_rows(3, seed=9)))
    wanted = spec(random_rows(5))
    wanted = dataclasses.replace(wanted, tokenizer=TokenizerSpec(str(folder), False), paths=[*wanted.paths, second])
    before = cache_spec.cache_key(wanted.ingredients())
    assert before == cache_spec.cache_key(wanted.ingredients())
    changes = {
        "layout": {"keys": RowFormat(layout="votes")},
        "annotator_key": {"keys": RowFormat(annotator_key="worker")},
        "pair_id_key": {"keys": RowFormat(pair_id_key="id")},
        "use_chat_template": {"tokenizer": TokenizerSpec(str(folder), True)},
        "seq_length": {"seq_length": 65},
        "group_votes": {"group_votes": False},
        "invalid_pairs": {"invalid_pairs": "drop"},
        "order of files": {"paths": wanted.paths[::-1]},
    }
    if ingredient == "data":
        second.write_text(second.read_text().replace("pair-0", "pair-X"))
    elif ingredient == "tokenizer":
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    elif ingredient == "template":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    elif ingredient in ("version", "truncation"):
        name = {"version": "CACHE_VERSION", "truncation": "TRUNCATION_RULE"}[ingredient]
        monkeypatch.setattr(cache_spec, name, "another")
    changed = dataclasses.replace(wanted, **changes.get(ingredient, {}))
    assert cache_spec.cache_key(changed.ingredients()) != before


def test_resume_keeps_the_indices_of_the_checkpoint(spec):
    cache = opened(spec(random_rows(40)))
    ids = [[cache.annotators.ids[k] for k in cache.pair(i).annotator] for i in range(len(cache))]
    saved = AnnotatorTable([Annotator("w5", 1, ""), Annotator("gone", 1, "")])
    table = saved.extended(cache.annotators, allow_new=True)
    cache.use_annotators(table)
    assert table.index("w5") == 0
    assert ids == [[table.ids[k] for k in cache.pair(i).annotator] for i in range(len(cache))]
    with pytest.raises(DataError, match=r"train\.jsonl:\d+: annotator 'w0' \(and 7 more\)"):
        saved.extended(cache.annotators, allow_new=False)


def test_another_tables_indices_and_one_for_whoever_it_lacks(spec):
    cache = opened(spec(random_rows(40)))
    ids = [[cache.annotators.ids[k] for k in cache.pair(i).annotator] for i in range(len(cache))]
    cache.use_annotators(AnnotatorTable([Annotator("w5", 1, ""), Annotator("w2", 1, "")]), unknown=2)
    indices = {"w5": 0, "w2": 1}
    assert [[indices.get(name, 2) for name in names] for names in ids] == [
        list(cache.pair(i).annotator) for i in range(len(cache))
    ]


def test_bad_settings_and_folders_are_named(spec, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.data\.invalid_pairs is 'ignore'; it can be error or drop"):
        spec(random_rows(1), invalid_pairs="ignore")
    wanted = spec(random_rows(5))
    with pytest.raises(DataError, match=r"absent\.jsonl does not exist"):
        dataclasses.replace(wanted, paths=tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"data file .*train\.jsonl cannot be read \(No such file or directory\)"):
        wanted.paths[0].rename(tmp_path / "moved.jsonl")  # after it was looked for
        wanted.ingredients()
    (tmp_path / "moved.jsonl").rename(wanted.paths[0])
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the token cache in .*file.*; set model\.data\.cache_dir"):
        open_cache(wanted, tmp_path / "file", num_workers=0, wait_timeout=1)


@pytest.mark.parametrize("damage", ["tokens.bin", "lengths.npy", "meta.json", "annotators.jsonl"])
def test_a_damaged_cache_is_named(spec, damage):
    cache = opened(spec(random_rows(10)))
    path = cache.folder / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"token cache .* is damaged .*; delete that folder"):
        PreferenceCache(cache.folder)


def test_a_flipped_bit_in_any_file_is_named(spec):
    wanted = spec(random_rows(10))
    folder = opened(wanted).folder
    files = sorted(folder.iterdir())
    assert len(files) > 10
    for path in files:
        whole = path.read_bytes()
        for place in {0, len(whole) // 3, len(whole) - 1} if whole else ():
            for bit in (0, 3, 6):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
                with pytest.raises(DataError, match=r"token cache .* is damaged .*; delete that") as caught:
                    opened(wanted)
                assert path.name in str(caught.value) or path.name == "meta.json"
        path.write_bytes(whole)
    assert len(opened(wanted)) > 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("offsets", lambda a: a + 10**9),
        ("offsets", lambda a: a - 10**6),
        ("lengths", lambda a: -a),
        ("lengths", lambda a: a[:0]),
        ("lengths", lambda a: a[:, :2]),
        ("vote_start", lambda a: a[::-1]),
        ("vote_start", lambda a: a + 1),
        ("annotator", lambda a: a + 100),
        ("annotator", lambda a: a - 100),
        ("sign", lambda a: a * 3),
        ("source", lambda a: a + 7),
        ("pair_id_start", lambda a: a * 2),
        ("columns", lambda a: a[:, :3]),
        ("gold", lambda a: a[:2]),
    ],
)
def test_a_cache_whose_files_do_not_fit_together_is_named(spec, name, change):
    cache = opened(spec(random_rows(10)))
    path = cache.folder / f"{name}.npy"
    np.save(path, np.ascontiguousarray(change(np.load(path))))
    with pytest.raises(DataError, match=r"token cache .* is damaged .*; delete that folder"):
        PreferenceCache(cache.folder)


@pytest.mark.parametrize("meta", ["[]", "null", '{"tokens": "x"}', '{"tokens": -1}', "[" * 10**5, '{"tokens": 1e30}'])
def test_a_cache_whose_description_is_of_another_type_is_named(spec, meta):
    cache = opened(spec(random_rows(3)))
    (cache.folder / "meta.json").write_text(meta)
    with pytest.raises(DataError, match=r"token cache .* is damaged"):
        PreferenceCache(cache.folder)
    changes = [("report", []), ("report", {"annotators": 9})]
    for name, value in (*changes, ("files", 3), ("columns", None), ("max_votes", "x"), ("max_votes", 0)):
        cache = opened(spec(random_rows(4 + len(name))))
        good = json.loads((cache.folder / "meta.json").read_text())
        (cache.folder / "meta.json").write_text(json.dumps(good | {name: value}))
        with pytest.raises(DataError, match=r"token cache .* is damaged"):
            PreferenceCache(cache.folder)
        shutil.rmtree(cache.folder)


def test_opening_two_hundred_thousand_pairs_reads_no_tokens(spec):
    """A worker's memory grows by the pages it looks at: far less than the 2 GB of tokens, or one object a pair."""
    folder = opened(spec(random_rows(50))).folder
    n, tokens = 200_000, 500_000_000
    for name in ("lengths", "gold", "content_hash", "source"):
        array = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", np.resize(array, (n, *array.shape[1:])))
    offsets = np.sort(np.random.default_rng(0).integers(0, tokens - 100, n))
    np.save(folder / "offsets.npy", np.stack([offsets] * 3, axis=1))
    np.save(folder / "vote_start.npy", np.arange(n + 1))
    np.save(folder / "annotator.npy", np.zeros(n, dtype=np.int32))
    np.save(folder / "sign.npy", np.ones(n, dtype=np.int8))
    np.save(folder / "columns.npy", np.zeros((1, n), dtype=np.float32))
    np.save(folder / "pair_id_start.npy", np.minimum(np.arange(n + 1), 100))
    os.truncate(folder / "tokens.bin", 4 * tokens)  # sparse: it takes no disk either
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(sealed(meta | {"tokens": tokens}))
    script = """
import resource, sys
import numpy as np
from nemo_rpo.data.cache.store import PreferenceCache
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache = PreferenceCache(sys.argv[1])
assert len(cache) == 200_000
int(np.asarray(cache.lengths).sum())
for i in range(0, 200_000, 2000):
    cache.pair(i)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 * 1024, "KiB; the tokens are 2,000,000"
    assert resource.getpagesize() <= 65536, "the bound above assumes small pages"
