"""What public bug reports of this field describe, and what happens here: rows that are read, rendered and judged right.

Each test is about a kind of fault; the inputs are small files as people have them.
"""

import csv
import datetime
import json
import os
import random
import shutil

import pytest

from nemo_rpo.conversion import convert
from nemo_rpo.data.cache.build import open_cache
from nemo_rpo.data.cache.encoder import encode_chunk
from nemo_rpo.data.cache.spec import CacheSpec
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.formulas import without_quote
from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.files.write import record_writer, write_csv
from nemo_rpo.data.formats import read_parsed, read_rows
from nemo_rpo.data.rendering import EMPTY, IDENTICAL, OK, RawText
from nemo_rpo.data.rows import Vote
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import DataError, RowError
from nemo_rpo.validation import CHECKS, ValidationSettings, validate, write_clean
from nemo_rpo.validation.text_report import as_text

from .conftest import CHAT_TEMPLATE, train_tokenizer, write_jsonl

# Tools first, then turns; an assistant's calls are rendered, and so are its words.
TOOL_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments }}]{% endfor %}"
    "{{ eos_token if m.role == 'assistant' else '<|end|>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{{ '<think>' if thinking else '' }}{% endif %}"
)
GET = {"type": "function", "function": {"name": "get", "parameters": {"city": {"type": "integer", "default": None}}}}


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer_folder):
    """Tokenizer folders by template: ``plain`` renders neither tools nor calls, ``tools`` both; so does ``strict``,
    which refuses a message of neither words nor calls.
    """
    made = {"plain": tokenizer_folder, "none": train_tokenizer(tmp_path_factory.mktemp("none"), None)}
    made["tools"] = train_tokenizer(tmp_path_factory.mktemp("tools"), TOOL_TEMPLATE)
    refusal = "{% for m in messages if not (m.content or m.tool_calls) %}{{ raise_exception('nothing') }}{% endfor %}"
    made["strict"] = train_tokenizer(tmp_path_factory.mktemp("strict"), refusal + TOOL_TEMPLATE)
    return made


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text, **more):
    return [{"role": "assistant", "content": text, **more}]


def call(city, **more):
    return {"type": "function", "function": {"name": "get", "arguments": json.dumps({"city": city})}, **more}


def load(folder, use_chat_template=False, **more):
    return PreferenceTokenizer.load(TokenizerSpec(str(folder), use_chat_template, **more))


def rendered(tokenizer, row):
    """Prompt and responses as text."""
    ids = [tokenizer.render(row.prompt, response, row.given) for response in row.responses]
    return tuple(tokenizer.tokenizer.decode(part) for part in (ids[0][0], *(response for _, response in ids)))


def rows_of(tmp_path, *rows, keys=None):
    return list(read_rows(write_jsonl(tmp_path / "rows.jsonl", list(rows)), keys))


def checked(path, folder=None, **more):
    settings = ValidationSettings(min_labels=0, **more)
    if folder is not None:
        settings.tokenizer, settings.seq_length = str(folder), settings.seq_length or 512
    return validate(path, settings)


def errors(report):
    return {kind for kind in report.findings.of("error")}


def opened(path, folder, use_chat_template=False, **more):
    settings = {"seq_length": 512, "group_votes": True, "invalid_pairs": "error"} | more
    spec = CacheSpec(path, RowFormat(), TokenizerSpec(str(folder), use_chat_template), **settings)
    return open_cache(spec, None, num_workers=0)


# Fields that were dropped without a word


def test_tools_and_template_arguments_are_rendered_where_the_template_takes_them(tmp_path, folders):
    row = {"prompt": user("weather?"), "chosen": assistant("rain"), "rejected": assistant("sun"), "tools": [GET]}
    as_json = row | {"tools": json.dumps([GET]), "chat_template_kwargs": {"thinking": True}}
    plain, thinking = rows_of(tmp_path, row, as_json)
    tokenizer = load(folders["tools"])
    prompt, *_ = rendered(tokenizer, plain)
    assert '"get"' in prompt and "null" not in prompt, "Parquet's nulls are no part of a tool"
    assert rendered(tokenizer, thinking)[0].replace("<think>", "") in (prompt, prompt.removesuffix("<|assistant|>\n"))
    assert not {note for note in tokenizer.take_notes() if "tools" in note}
    assert rendered(load(folders["plain"]), plain)[0] == rendered(load(folders["plain"]), plain)[0]


def test_other_tools_are_another_prompt(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    report = checked(write_jsonl(tmp_path / "rows.jsonl", [row, row | {"tools": [GET]}, row | {"system": "Be rude"}]))
    assert report.report.pairs == 3


@pytest.mark.parametrize("use_chat_template", [True, False])
def test_a_system_message_is_rendered_or_named(tmp_path, folders, use_chat_template):
    path = write_jsonl(tmp_path / "s.jsonl", [{"system": "Be rude", "prompt": "q", "chosen": "yes", "rejected": "no"}])
    [row] = read_rows(path)
    tokenizer = load(folders["plain"], use_chat_template)
    prompt, *_ = rendered(tokenizer, row)
    assert ("<|system|>\nBe rude<|end|>\n<|user|>\nq" in prompt) == use_chat_template
    unread = [note for note in tokenizer.take_notes() if "'system'" in note]
    assert len(unread) == (not use_chat_template)
    cache = opened(path, folders["plain"], use_chat_template)
    assert len([note for note in cache.notes() if "'system'" in note]) == (not use_chat_template)


def test_a_system_message_stands_before_messages_once(tmp_path):
    row = {"prompt": user("q"), "chosen": assistant("a"), "rejected": assistant("b"), "system": "Be kind"}
    said = [{"role": "system", "content": "Be kind"}, *user("q")]
    [before, there] = rows_of(tmp_path, row, row | {"prompt": said})
    assert before.prompt == there.prompt == said
    with pytest.raises(RowError, match="different system messages"):
        rows_of(tmp_path, row | {"prompt": said, "system": "Be rude"})
    with pytest.raises(RowError, match="field 'system' must be a string"):
        rows_of(tmp_path, row | {"system": user("s")})


def test_every_field_that_is_not_read_is_named_once(tmp_path, folders, caplog):
    vote = {"annotator": "w1", "vote": "a", "mood": 3}
    pair = {"prompt": "q", "response_a": "yes", "response_b": "no", "votes": [vote], "meta": {"x": 1}, "empty": None}
    path = write_jsonl(tmp_path / "v.jsonl", [pair | {"prompt": f"q{i}"} for i in range(3)])
    report = checked(path).report
    assert report.unread == {"meta": 3, "votes[].mood": 3} and not report.errors
    assert "meta (3), votes[].mood (3)" in as_text(report)
    opened(path, folders["plain"])
    said = [record.getMessage() for record in caplog.records if "is not read" in record.getMessage()]
    assert len(said) == 2 and all("(3)" in line for line in said)
    caplog.clear()
    opened(path, folders["plain"])
    assert len([r for r in caplog.records if "is not read" in r.getMessage()]) == 2, "said at every start"


def test_message_keys_and_tools_that_the_template_does_not_take_are_named(tmp_path, folders):
    chosen = assistant("ok", tool_calls=[call(1)])
    row = {"prompt": user("q"), "chosen": chosen, "rejected": assistant("no"), "tools": [GET]}
    path = write_jsonl(tmp_path / "t.jsonl", [row])
    notes = checked(path, folders["plain"]).report.notes
    assert {n.split("'")[1] for n in notes if "does not take it" in n} == {"messages[].tool_calls", "tools"}
    assert not [n for n in checked(path, folders["tools"]).report.notes if "does not take it" in n]


TIED = {
    "hf": {"prompt": "q", "chosen": "a", "rejected": "b", "annotator": "w1"},
    "nemo_aligner": {"prompt": "q", "chosen_response": "a", "rejected_response": "b", "annotator": "w1"},
    "rankings": {"prompt": "q", "responses": ["a", "b"], "annotator": "w1"},
    "nemo_rl": {
        "context": user("q"),
        "completions": [{"rank": i, "completion": assistant(t)} for i, t in enumerate("ab")],
        "annotator": "w1",
    },
}


@pytest.mark.parametrize("layout", TIED)
@pytest.mark.parametrize(("said", "sign"), [(True, 0), ("true", 0), (1, 0), (False, 1), (None, 1), ("False", 1)])
def test_tie_is_a_tie_in_every_layout(tmp_path, layout, said, sign):
    [row] = rows_of(tmp_path, TIED[layout] | {"tie": said})
    assert row.votes == (Vote("w1", sign),)


def test_tie_of_a_vote(tmp_path):
    pair = {"prompt": "q", "response_a": "a", "response_b": "b"}
    [row] = rows_of(tmp_path, pair | {"votes": [{"annotator": "w1", "tie": True}, {"annotator": "w2", "vote": "b"}]})
    assert [vote.sign for vote in row.votes] == [0, -1]
    with pytest.raises(RowError, match="says a tie, and 'vote' says a"):
        rows_of(tmp_path, pair | {"votes": [{"vote": "a", "tie": True}]})
    with pytest.raises(RowError, match="field 'tie' must be true or false"):
        rows_of(tmp_path, TIED["hf"] | {"tie": "perhaps"})


@pytest.mark.parametrize("to", ["hf", "nemo_rl", "rankings", "votes", "multipref"])
def test_convert_keeps_or_counts(tmp_path, to):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "tools": [GET], "system": "Be kind", "mood": 4}
    path = write_jsonl(tmp_path / "in.jsonl", [row])
    done = convert(path, to, tmp_path / "out.jsonl")
    assert done.lost["values of field 'mood' (not read)"] == 1
    [before], [after] = read_rows(path), read_rows(tmp_path / "out.jsonl")
    assert after.given["tools"] == before.given["tools"]
    system = after.given.get("system") or after.prompt[0]["content"]
    assert system == "Be kind"


# Tool calls are completions


def test_a_call_is_a_completion_as_far_as_it_is_rendered(tmp_path, folders):
    null = {"role": "assistant", "content": None, "tool_calls": [call(1)]}
    rows = [{"prompt": user(f"q{i}"), "chosen": [null], "rejected": assistant("sun")} for i in range(2)]
    path = write_jsonl(tmp_path / "null.jsonl", rows)
    assert not checked(path).report.errors
    assert not checked(path, folders["tools"]).report.errors
    assert errors(checked(path, folders["plain"]).report) == {"empty_completion"}, "nothing of it is rendered"
    assert len(opened(path, folders["tools"])) == len(opened(path, folders["strict"])) == 2
    with pytest.raises(DataError, match="empty completion"):
        opened(path, folders["plain"])
    left_out = write_clean(checked(path, folders["tools"]), tmp_path / "clean.jsonl")
    assert left_out.written == 2
    convert(path, "nemo_rl", tmp_path / "rl.jsonl")
    assert [row.chosen for row in read_rows(tmp_path / "rl.jsonl")] == [row.chosen for row in read_rows(path)]
    with pytest.raises(DataError, match="holds texts, and an answer has tool_calls"):
        convert(path, "nemo_aligner", tmp_path / "aligner.jsonl")


def test_equal_words_with_other_calls_are_two_completions(tmp_path, folders):
    sides = [assistant("ok", tool_calls=[call(city, id=f"c{city}")]) for city in (0, 50)]
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": user("w"), "chosen": sides[0], "rejected": sides[1]}])
    assert not checked(path).report.errors and not checked(path, folders["tools"]).report.errors
    assert len(opened(path, folders["tools"])) == 1
    assert errors(checked(path, folders["plain"]).report) == {"identical_tokens"}
    with pytest.raises(DataError, match="identical completions"):
        opened(path, folders["plain"])


def test_an_empty_answer_is_still_empty(tmp_path, folders):
    for empty in ({"tool_calls": []}, {}):
        row = {"prompt": user("q"), "chosen": assistant(" ", **empty), "rejected": assistant("b")}
        for folder in (None, folders["tools"]):
            assert errors(checked(write_jsonl(tmp_path / "e.jsonl", [row]), folder).report) == {"empty_completion"}
    with pytest.raises(RowError, match=r"chosen\[0\]\.content' is null"):
        rows_of(tmp_path, {"prompt": user("q"), "chosen": assistant(None), "rejected": assistant("b")})


# Text that was rendered before, and prompts inside responses


@pytest.mark.parametrize("use_chat_template", [False, True])
def test_rendered_text_gets_no_second_begin_and_end(tmp_path, folders, use_chat_template):
    prompt, end = "<s><|user|>\nwhy<|end|>\n<|assistant|>\n", "</s>"
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt": prompt, "chosen": f"yes{end}", "rejected": f"no{end}\n"}])
    tokenizer = load(folders["plain"], use_chat_template)
    [row] = read_rows(path)
    assert rendered(tokenizer, row) == (prompt, "yes</s>", "no</s>\n")
    notes = tokenizer.take_notes()
    assert any("no second one was added" in note for note in notes) and any("no end-of-seq" in note for note in notes)
    assert checked(path, folders["plain"], use_chat_template=use_chat_template).report.notes.keys() == notes


def test_text_that_ends_as_the_template_ends_turns_has_ended(folders):
    assert load(folders["plain"]).render("q", "yes<|end|>\n")[1].tolist()[-1] != load(folders["plain"]).eos_id
    assert load(folders["plain"]).render("q", "yes")[1].tolist()[-1] == load(folders["plain"]).eos_id


def test_a_prompt_at_the_head_of_both_responses_is_taken_off(tmp_path, folders, caplog):
    prompt = "Q 0: three ten two ?\nA:"
    row = {"prompt": prompt, "chosen": f"{prompt} eight", "rejected": f"{prompt} one"}
    path = write_jsonl(tmp_path / "h.jsonl", [row, row | {"rejected": " one"}])
    repeated, other = read_rows(path)
    assert (repeated.chosen, repeated.rejected) == (" eight", " one")
    assert other.chosen == f"{prompt} eight", "on one side alone it is an answer"
    assert checked(path).report.findings.counts["prompt_repeated"] == 1
    opened(write_jsonl(tmp_path / "one.jsonl", [row]), folders["plain"])
    assert "begin with the prompt" in caplog.text
    [greeting] = rows_of(tmp_path, {"prompt": "Hello", "chosen": "Hello, you", "rejected": "Hello there"})
    assert greeting.chosen == "Hello, you", "a greeting is answered with itself"


# Templates


def test_a_template_whose_turns_do_not_end_is_named(tmp_path, folders):
    endless = CHAT_TEMPLATE.replace("<|end|>\n{% endfor %}", "\n{% endfor %}")
    folder = train_tokenizer(tmp_path / "endless", endless)
    path = write_jsonl(
        tmp_path / "m.jsonl", [{"prompt": user("q"), "chosen": assistant("a"), "rejected": assistant("b")}]
    )
    for place, words in ((folder, "never learns to stop"), (folders["plain"], "learns to stop at <|end|> only")):
        assert any(words in note for note in checked(path, place).report.notes)
        assert any(words in note for note in opened(path, place).notes())
    stopping = tmp_path / "stopping"
    shutil.copytree(folders["plain"], stopping)
    end = load(folders["plain"]).tokenizer.convert_tokens_to_ids("<|end|>")
    (stopping / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, end]}))
    for place in (stopping, folders["tools"]):
        assert not any("stop" in note for note in checked(path, place).report.notes)


def test_a_template_that_prints_the_date_has_one_day_a_run(tmp_path):
    dated = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    folder = train_tokenizer(tmp_path / "dated", dated)
    day = datetime.date(2024, 7, 26)
    spec = TokenizerSpec(str(folder), False, date=day)
    prompt, _ = PreferenceTokenizer.load(spec).render(user("q"), assistant("a"))
    tokenizer = PreferenceTokenizer.load(spec)
    assert tokenizer.tokenizer.decode(prompt).startswith("26 Jul 2024")
    other = TokenizerSpec(str(folder), False, date=day + datetime.timedelta(1))
    assert spec.fingerprint() != other.fingerprint()
    assert spec.dated() == spec and TokenizerSpec(str(folder), False).dated().date == datetime.date.today()
    tokenizer.render(user("q"), assistant("a"))
    assert any("prints a date, which is 2024-07-26" in note for note in tokenizer.take_notes())


def test_a_template_without_a_date_knows_none(folders):
    spec = TokenizerSpec(str(folders["plain"]), False)
    assert spec.dated() == spec
    assert (
        TokenizerSpec(str(folders["plain"]), False, date=datetime.date(2024, 7, 26)).fingerprint() == spec.fingerprint()
    )


def test_a_prompt_that_ends_in_the_assistants_words_is_continued(tmp_path, folders):
    prefill = [*user("w"), *assistant("It is")]
    row = {"prompt": prefill, "chosen": assistant(" good"), "rejected": assistant(" bad")}
    [parsed] = rows_of(tmp_path, row)
    expected = ("<s><|user|>\nw<|end|>\n<|assistant|>\nIt is", " good<|end|>\n", " bad<|end|>\n")
    assert rendered(load(folders["plain"]), parsed) == expected
    turns = [*assistant(" good"), *user("sure?"), *assistant("yes")]
    tokenizer = load(folders["plain"])
    prompt, response, runs = tokenizer.render_turns(prefill, turns)
    assert tokenizer.tokenizer.decode(prompt) == expected[0]
    assert tokenizer.tokenizer.decode(response[: runs[0]]) == " good<|end|>\n" and len(runs) == 3
    trimmed = load(train_tokenizer(tmp_path / "trim", CHAT_TEMPLATE.replace("m.content", "m.content | trim")))
    assert rendered(trimmed, parsed) == expected


def test_a_row_of_messages_without_a_template_is_one_error(tmp_path, folders):
    rows = [{"prompt": user(f"q{i}"), "chosen": assistant("a"), "rejected": assistant("b")} for i in range(50)]
    path = write_jsonl(tmp_path / "m.jsonl", rows)
    report = checked(path, folders["none"]).report
    assert report.findings.counts["no_chat_template"] == 1 and report.errors == 1
    assert not report.longest and "longest" not in as_text(report)
    for policy in ("error", "drop"):
        with pytest.raises(DataError, match=r"m\.jsonl:1: the row has messages, but .* no chat template"):
            opened(path, folders["none"], invalid_pairs=policy)


def test_a_row_that_the_template_rejects_is_dropped_and_counted(tmp_path):
    strict = "{{ raise_exception('no tools') if messages[0].role == 'tool' }}" + CHAT_TEMPLATE
    folder = train_tokenizer(tmp_path / "strict", strict)
    good = {"prompt": user("q"), "chosen": assistant("a"), "rejected": assistant("b")}
    path = write_jsonl(tmp_path / "m.jsonl", [good, good | {"prompt": [{"role": "tool", "content": "x"}]}])
    assert checked(path, folder).report.findings.counts["not_renderable"] == 1
    with pytest.raises(DataError, match=r"m\.jsonl:2: the chat template of .* rejects the row: no tools"):
        opened(path, folder)
    cache = opened(path, folder, invalid_pairs="drop")
    assert len(cache) == 1 and cache.report["dropped"] == {"cannot be rendered": 1}
    write_jsonl(path, [good | {"prompt": [{"role": "tool", "content": "x"}]}])
    with pytest.raises(DataError, match=r"1 cannot be rendered; the first: .*no tools"):
        opened(path, folder, invalid_pairs="drop")


def test_a_response_without_the_assistant_is_refused_where_it_is_read(tmp_path):
    row = {"prompt": user("q"), "chosen": assistant("yes"), "rejected": user("no")}
    path = write_jsonl(tmp_path / "swap.jsonl", [row])
    assert errors(checked(path).report) == {"bad_field"}
    with pytest.raises(RowError, match=r"the rejected response has no message of the assistant \(role: user\)"):
        list(read_rows(path))


def test_padding_is_an_id_that_the_data_holds(tmp_path, folders):
    folder = tmp_path / "padded"
    shutil.copytree(folders["none"], folder)
    tokenizer = load(folder).tokenizer
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    cache = opened(path, folder)
    assert load(folder).pad_id > cache.max_token_id >= cache.pad_id


def test_a_tokenizer_that_brings_code_never_runs_it_unasked(tmp_path, folders, monkeypatch):
    folder = tmp_path / "code"
    shutil.copytree(folders["plain"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    try:
        load(folder)
    except DataError as exc:
        assert "set model.tokenizer.trust_remote_code=true" in str(exc)
    assert not (tmp_path / "ran").exists()


# Numbers and ids


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "1e39", "9" * 401, '"inf"', "1e400"])
@pytest.mark.parametrize("field", ["chosen_reward", "margin"])
def test_numbers_that_float32_cannot_hold_are_bad_fields(tmp_path, field, value):
    good = '{"prompt": "q", "chosen": "a", "rejected": "b"}'
    path = write_jsonl(tmp_path / "n.jsonl", [good, good[:-1] + f', "{field}": {value}}}'])
    with pytest.raises(RowError, match=rf"n\.jsonl:2: field '{field}' must be a finite number"):
        list(read_rows(path))
    assert errors(checked(path).report) == {"bad_field"}


def test_rewards_of_rankings_are_numbers_too(tmp_path):
    row = '{"prompt": "q", "responses": ["a", "b", "c"], "rewards": [1, Infinity, 0]}'
    with pytest.raises(RowError, match=r"'rewards\[1\]' must be a finite number"):
        rows_of(tmp_path, row)
    completions = [{"rank": i, "completion": assistant(f"a{i}"), "reward": float("inf")} for i in range(2)]
    with pytest.raises(RowError, match=r"completions\[0\]\.reward' must be a finite number"):
        rows_of(tmp_path, {"context": user("q"), "completions": completions})


def test_a_table_of_strings_has_numbers(tmp_path):
    path = tmp_path / "n.csv"
    path.write_text("prompt,chosen,rejected,chosen_reward,tie\nq,a,b,1.5,\nr,a,b,,True\n")
    first, second = read_rows(path)
    assert first.columns == {"chosen_reward": 1.5} and second.columns == {} and second.votes[0].sign == 0


IDS = [("1.0", "1"), (1.0, "1"), (1, "1"), (" ", None), ("", None), ("\t", None), (None, None), ("w 1", "w 1")]
IDS += [("9007199254740993", "9007199254740993"), (9007199254740993, "9007199254740993"), ("1.5", "1.5")]
IDS += [(2**64 + 1, str(2**64 + 1)), ("-3.0", "-3"), ("model-2.0", "model-2.0"), (float("nan"), None)]


@pytest.mark.parametrize(("value", "expected"), IDS)
@pytest.mark.parametrize("layout", [*TIED, "votes", "multipref"])
def test_one_rule_for_ids_in_all_layouts(tmp_path, layout, value, expected):
    if layout == "votes":
        row = {"prompt": "q", "response_a": "a", "response_b": "b", "votes": [{"annotator": value, "vote": "a"}]}
    elif layout == "multipref":
        labels = [{"evaluator": value, "overall_pref": "Tie"}]
        row = {"text": "q", "completion_a": "a", "completion_b": "b", "normal_worker_annotations": labels}
    else:
        row = TIED[layout] | {"annotator": value}
    assert [vote.annotator for vote in rows_of(tmp_path, row)[0].votes] == [expected]


@pytest.mark.parametrize("value", [9007199254740992.0, 1e300, "9007199254740992.0", "9.007199254740992e+15", "1e+18"])
def test_ids_that_went_through_floats_too_large_for_them_are_refused(tmp_path, value):
    with pytest.raises(RowError, match="stands for several integers: ids that differ have become one"):
        rows_of(tmp_path, TIED["hf"] | {"annotator": value})


def test_the_same_ids_in_csv_jsonl_and_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    names = [None, 1.0, 2.0]
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "annotator": name} for i, name in enumerate(names)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for suffix in ("jsonl", "csv", "parquet"):
        found = [row.votes[0].annotator for row in read_rows(tmp_path / f"t.{suffix}")]
        assert found == [None, "1", "2"], suffix


@pytest.mark.parametrize("out", ["m.jsonl", "m.parquet"])
def test_a_missing_annotator_stays_missing_through_multipref(tmp_path, out):
    rows = [TIED["hf"] | {"annotator": name, "prompt": f"q{name}"} for name in ("w1", None)]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    convert(path, "multipref", tmp_path / out)
    convert(tmp_path / out, "hf", tmp_path / "back.jsonl")
    for file in (tmp_path / out, tmp_path / "back.jsonl"):
        assert [row.votes[0].annotator for row in read_rows(file)] == ["w1", None]


def test_a_date_that_should_be_an_id_says_why(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    rows = [TIED["hf"] | {"annotator": datetime.datetime(2024, 5, 1)}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    with pytest.raises(RowError, match=r"is a datetime .* a reader took it for a date; store the column as strings"):
        list(read_rows(tmp_path / "d.parquet"))


# Damaged and unusual files


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "id": ' + "9" * 5000 + "}", "bad JSON"),
        ('{"prompt": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deep"),
    ],
)
def test_json_beyond_pythons_limits_is_a_bad_row(tmp_path, line, words):
    path = write_jsonl(tmp_path / "l.jsonl", [line, TIED["hf"]])
    error, record = read_records(path)
    assert isinstance(error, RowError) and error.row == 1 and words in str(error) and record.row == 2
    assert errors(checked(path).report) == {"bad_json"}


def test_deep_fields_are_no_traceback(tmp_path):
    for depth in (300, 900, 5_000):
        nested = "[" * depth + "]" * depth
        line = (
            '{"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "x": ' + nested + '}], "rejected": "b"}'
        )
        path = write_jsonl(tmp_path / "deep.jsonl", [line, TIED["hf"]])
        assert checked(path).report.errors == 1


def test_csv_as_pandas_writes_it(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(",prompt,chosen,rejected\n0,q,a,b\n1,r,a\n\n2,s,a,b\n")
    first, short, last = read_records(path)
    assert first.fields == {"(unnamed)": "0", "prompt": "q", "chosen": "a", "rejected": "b"} and last.row == 5
    assert isinstance(short, RowError) and str(short) == f"{path}:3: 1 values fewer than the header has columns"
    assert checked(path).report.unread == {"(unnamed)": 2}
    path.write_text("prompt,chosen,chosen\nq,a,b\n")
    with pytest.raises(DataError, match="two columns are called 'chosen'"):
        list(read_records(path))


def test_a_csv_field_may_be_longer_than_the_modules_limit(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(f"prompt,chosen,rejected\n{'q ' * 200_000},a,b\n")
    [row] = read_rows(path)
    assert len(row.prompt) == 400_000


def test_dates_out_of_range_in_a_column_that_nobody_reads(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    far = pyarrow.array([2**62, 0], type=pyarrow.timestamp("us"))
    days = pyarrow.array([2**30, 0], type=pyarrow.date32())
    nested = pyarrow.StructArray.from_arrays([far], ["at"])
    texts = {name: pyarrow.array(values) for name, values in (("prompt", ["q", "r"]), ("chosen", ["a", "a"]))}
    table = pyarrow.table({**texts, "rejected": ["b", "b"], "when": far, "day": days, "nested": nested})
    parquet.write_table(table, tmp_path / "far.parquet")
    validation = checked(tmp_path / "far.parquet")
    assert validation.report.rows == 2 and not validation.report.errors
    assert write_clean(validation, tmp_path / "clean.jsonl").written == 2
    assert [row.prompt for row in read_rows(tmp_path / "clean.jsonl")] == ["q", "r"]


def test_what_is_kept_can_be_written(tmp_path):
    odd = TIED["hf"] | {"big": 2**64, "half": "\ud83d", "note": "é"}
    path = write_jsonl(tmp_path / "odd.jsonl", [json.dumps(odd)])
    validation = checked(path)
    assert not validation.report.errors
    write_clean(validation, tmp_path / "clean.jsonl")
    assert json.loads((tmp_path / "clean.jsonl").read_text()) == odd
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    with pytest.raises(DataError, match="do not fit one Parquet table"):
        write_clean(validation, tmp_path / "clean.parquet")
    assert not (tmp_path / "clean.parquet").exists()
    with record_writer(tmp_path / "dates.jsonl") as write:
        write({"when": datetime.date(2024, 5, 1), "raw": b"\xff"})
    assert json.loads((tmp_path / "dates.jsonl").read_text()) == {"when": "2024-05-01", "raw": "\\xff"}


def test_formulas_are_no_formulas_in_a_spreadsheet(tmp_path, caplog):
    texts = ["=cmd()", "+1", "-1", "@x", "\tx", "fine", "'quoted"]
    write_csv(tmp_path / "t.csv", [{"id": text, "score": -1.5} for text in texts])
    with (tmp_path / "t.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["id"][0] in "=+-@\t" for cell in cells] == [False] * 7
    assert [without_quote(cell["id"]) for cell in cells] == texts and cells[0]["score"] == "-1.5"
    assert "5 texts that a spreadsheet would run" in caplog.text


def test_control_characters_of_an_id_do_not_reach_the_terminal(tmp_path):
    row = TIED["hf"] | {"annotator": "w\x1b[31m", "\x1b[2J": 1}
    text = as_text(checked(write_jsonl(tmp_path / "a.jsonl", [row, row])).report)
    assert "\x1b" not in text and "\\x1b" in text


# validate and training say the same


def test_what_validate_passes_training_takes_and_the_other_way_round(tmp_path, folders):
    rows = int(os.environ.get("NEMO_RPO_GENERATED_ROWS", 600))
    for name, use_chat_template in (("tools", False), ("tools", True), ("plain", False), ("plain", True)):
        random_rows = [_random_row(random.Random(f"{name} {use_chat_template} {i}"), i) for i in range(rows // 4)]
        path = write_jsonl(tmp_path / "g.jsonl", random_rows)
        settings = ValidationSettings(
            tokenizer=str(folders[name]),
            use_chat_template=use_chat_template,
            seq_length=48,
            min_labels=0,
            examples=10**6,
        )
        findings = validate(path, settings).report.findings
        refused = {found.row: kind for kind, kept in findings.kept.items() for found in kept if _is_error(kind)}
        trained = _refused_by_training(path, load(folders[name], use_chat_template), 48)
        assert refused.keys() == trained.keys(), {
            row: (refused.get(row), trained.get(row), random_rows[row - 1]) for row in refused.keys() ^ trained.keys()
        }
        assert len(trained) < len(random_rows) and len(set(trained.values())) > 3, "the rows must try something"


def _is_error(kind):
    return CHECKS[kind].severity == "error"


def _refused_by_training(path, tokenizer, seq_length):
    refused = {}
    for parsed in read_parsed(as_paths(path), RowFormat(), lambda error: refused.update({error.row: "unreadable"})):
        row = parsed.row
        chunk = encode_chunk([RawText(row.where, row.prompt, row.responses, row.given)], tokenizer, seq_length)
        if chunk.problem[0] != OK:
            refused[row.row] = int(chunk.problem[0])
    return refused


def test_the_generated_rows_meet_every_kind_of_refusal(tmp_path, folders):
    rows = [_random_row(random.Random(f"kinds {i}"), i) for i in range(400)]
    found = _refused_by_training(write_jsonl(tmp_path / "k.jsonl", rows), load(folders["plain"], True), 48)
    assert {"unreadable", EMPTY, IDENTICAL} <= set(found.values())


def _random_row(rng, i):
    """A row of layout ``hf`` as files have them: odd texts, roles, calls, columns and ids; its prompt its own."""
    texts = [
        "",
        " ",
        "yes",
        "no",
        "a tie says nothing",
        "<s>yes</s>",
        "<|end|>",
        "é \ud83d",
        "yes ",
        "a " * 60,
        None,
        3,
    ]

    def text():
        return rng.choice(texts[2:6] if rng.random() < 0.7 else texts)

    def message(role):
        said = {"role": role, "content": text()}
        if role == "assistant" and rng.random() < 0.3:
            said |= {"tool_calls": rng.choice([[call(1)], [call(2)], [], None]), "name": "x"}
        return said

    def side():
        if rng.random() < 0.5:
            return text()
        roles = rng.choice(
            [["assistant"]] * 6 + [["assistant", "user", "assistant"], ["user"], ["tool", "assistant"], []]
        )
        return [message(role) for role in roles]

    prompt = f"which answer, {i}?" if rng.random() < 0.5 else user(f"which answer, {i}?")
    if rng.random() < 0.1:
        prompt = [*user(f"which, {i}?"), *assistant(rng.choice(["It is", " "]))]
    if rng.random() < 0.05:
        prompt = rng.choice(["", [], f"<s><|user|>\n{i}", None])
    row = {"prompt": prompt, "chosen": side(), "rejected": side()}
    if rng.random() < 0.1 and isinstance(prompt, str):
        row |= {name: prompt + (row[name] or "") for name in ("chosen", "rejected") if isinstance(row[name], str)}
    for name, values in {
        "tools": [[GET], json.dumps([GET]), "no JSON", {}, None],
        "system": ["Be kind", "", 3, user("s")],
        "chat_template_kwargs": [{"thinking": True}, {"tokenize": True}, "x"],
        "tie": [False, "perhaps"],
        "annotator": ["w1", 1.0, 1e300, " ", True],
        "chosen_reward": [1.0, float("inf"), "2.5", "x"],
        "seconds": [4],
    }.items():
        if rng.random() < 0.15:
            row[name] = rng.choice(values[:2] if rng.random() < 0.7 else values)
    return json.dumps(row)
